from pathlib import Path

import pytest

from pytest_vllmperf.adapters.accepted_shifts import accept, read_shifts
from pytest_vllmperf.domain.series import Shift
from pytest_vllmperf.errors import HistoryError

SHIFT = Shift(engine="max-perf", workload="burst", metric="ttft_mean", since="2026-11-16", reason="meant")


def test_what_was_accepted_is_read_back_and_comments_stay(tmp_path: Path) -> None:
    path = tmp_path / "accepted-shifts.toml"
    assert read_shifts(path) == ()
    accept(path, SHIFT)
    path.write_text(path.read_text() + "# mine\n")
    accept(path, SHIFT)
    assert read_shifts(path) == (SHIFT, SHIFT)
    assert "# mine" in path.read_text()


@pytest.mark.parametrize(
    ("content", "told"),
    [("accepted = [", "is not TOML"), ('[[accepted]]\nengine = "e"\n', "accepted no. 1 lacks workload, metric, since")],
)
def test_a_broken_file_is_told_of_and_not_overwritten(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "accepted-shifts.toml"
    path.write_text(content)
    with pytest.raises(HistoryError, match=told):
        accept(path, SHIFT)
    assert path.read_text() == content
