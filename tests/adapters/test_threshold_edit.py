import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllmperf.adapters.threshold_edit import rewrite, with_changes
from pytest_vllmperf.domain.calibration import LimitChange
from pytest_vllmperf.domain.thresholds import MATCH_KEYS, Match
from pytest_vllmperf.errors import ConfigError, ThresholdFileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MINE = Match(hardware="NVIDIA H200", model="m", engine="e", workload="burst")
FILE = """\
# Our limits.
version = 1

[defaults]
launches = 3   # a launch takes a minute

[[limit]]   # agreed in May
match = { workload = "burst", engine = "e", model = "m", hardware = "NVIDIA H200" }
output_throughput = { min = "6000 tok/s", tolerance = "3 %" }   # the contract's
ttft_mean         = { max = "600 ms" }  # 500 ms over 3 launches, sd 1 %

# --- Everything below is for the CPU ---

[[limit]]
match = { hardware = "CPU *" }
ttft_mean = { max = "9 s" }

[quality.tasks.gsm8k]
shots = 5
"""


def change(metric: str, value: str | int, *, key: str = "max", match: Match = MINE) -> LimitChange:
    return LimitChange(match=match, metric=metric, key=key, value=value, comment="new level")  # type: ignore[arg-type]


def edited(text: str, *changes: LimitChange) -> str:
    return with_changes(text, changes, heading="Proposed.")


def test_a_bound_is_changed_where_it_stands_and_nothing_else_is() -> None:
    new = edited(FILE, change("output_throughput", "6500 tok/s", key="min"))
    assert new == FILE.replace('min = "6000 tok/s"', 'min = "6500 tok/s"')


def test_a_comment_of_an_earlier_calibration_is_renewed() -> None:
    new = edited(FILE, change("ttft_mean", "550 ms"))
    assert new == FILE.replace('"600 ms" }  # 500 ms over 3 launches, sd 1 %', '"550 ms" }  # new level')


def test_a_new_limit_follows_the_last_one_of_its_table_and_not_what_introduces_the_next() -> None:
    new = edited(FILE, change("ttft_p50", "500 ms"))
    line = 'ttft_p50          = { max = "500 ms" }  # new level\n'
    assert new == FILE.replace("sd 1 %\n", "sd 1 %\n" + line)


def test_tables_that_are_for_more_than_this_stay_and_a_new_one_is_added_at_the_end() -> None:
    cpu = Match(hardware="CPU *", model="m", engine="e", workload="burst")
    new = edited(FILE, change("ttft_mean", "8 s", match=cpu), change("preemptions", 0, match=cpu))
    assert new == FILE + (
        "\n# Proposed.\n[[limit]]\n"
        'match = { hardware = "CPU *", model = "m", engine = "e", workload = "burst" }\n'
        'ttft_mean   = { max = "8 s" }  # new level\n'
        "preemptions = { max = 0 }  # new level\n"
    )


def test_a_file_that_is_not_there_begins_with_its_version() -> None:
    assert tomllib.loads(edited("", change("ttft_mean", "1 s"))) == {
        "version": 1,
        "limit": [
            {
                "match": {"hardware": "NVIDIA H200", "model": "m", "engine": "e", "workload": "burst"},
                "ttft_mean": {"max": "1 s"},
            }
        ],
    }


def test_limits_written_as_one_array_get_another_element() -> None:
    new = edited('version = 1\nlimit = [{ ttft_mean = { max = "1 s" } }]  # short\n', change("ttft_p50", "1 s"))
    assert [sorted(table) for table in tomllib.loads(new)["limit"]] == [["ttft_mean"], ["match", "ttft_p50"]]
    assert new.endswith("# short\n")


def test_line_ends_of_another_system_stay() -> None:
    new = edited(FILE.replace("\n", "\r\n"), change("ttft_p50", "500 ms"), change("ttft_mean", "8 s", match=Match()))
    assert new.count("\r\n") == new.count("\n")
    assert tomllib.loads(new)["limit"][0]["ttft_p50"] == {"max": "500 ms"}


def test_tables_apart_from_each_other_stay_where_they_are() -> None:
    apart = 'version = 1\n[[limit]]\nttft_p50.max = "1 s"\n[defaults]\nlaunches = 1\n[[limit]]\ntpot_mean.max = "1 s"\n'
    assert edited(apart, change("ttft_mean", "1 s")).startswith(apart)


def test_a_limit_with_a_header_of_its_own_is_changed_there() -> None:
    match = 'match = { hardware = "NVIDIA H200", model = "m", engine = "e", workload = "burst" }'
    text = f'version = 1\n[[limit]]\n{match}\n[limit.ttft_mean]\nmax = "600 ms"  # slow\n\n[defaults]\nlaunches = 1\n'
    new = edited(text, change("ttft_mean", "550 ms"), change("ttft_p50", "1 s"))
    assert new == text.replace("600", "550").replace(
        "[limit.ttft", 'ttft_p50 = { max = "1 s" }  # new level\n\n[limit.ttft'
    )


def test_what_only_looks_like_a_table_leaves_the_file_alone() -> None:
    text = 'version = 1\nnote = """\n[[limit]]\n"""\n'
    with pytest.raises(ConfigError, match="cannot be told apart"):
        edited(text, change("ttft_mean", "1 s"))


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
comments = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)
metrics = st.sampled_from(["ttft_mean", "ttft_p50", "output_throughput", "tpot_mean"])
matches = st.builds(Match, hardware=names, model=names, engine=names, workload=names)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[Match]]:
    """A thresholds file with comments and blank lines anywhere, and the subjects of its tables."""
    from tomlkit import item

    lines, known = [f"# {draw(comments)}", "version = 1  # first"], []
    for _ in range(draw(st.integers(0, 4))):
        lines += [""] * draw(st.integers(0, 2)) + [f"# {draw(comments)}"] * draw(st.integers(0, 2))
        match = draw(matches)
        if match not in known:
            known.append(match)
            keys = ", ".join(f"{key} = {item(getattr(match, key)).as_string()}" for key in MATCH_KEYS)
            lines += ["[[limit]]", f"match = {{ {keys} }}  # {draw(comments)}"]
            lines += [f'{m} = {{ max = "3 s" }} # {draw(comments)}' for m in draw(st.sets(metrics, min_size=1))]
    lines += draw(st.sampled_from([[], ["", "[quality.tasks.gsm8k]", "shots = 5"]]))
    return "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n"])), known


@settings(max_examples=50)
@given(data=st.data(), given_file=files())
def test_every_other_limit_and_every_line_of_the_file_survives(
    data: st.DataObject, given_file: tuple[str, list[Match]]
) -> None:
    text, known = given_file
    one = data.draw(st.one_of([matches, *([st.sampled_from(known)] if known else [])]))
    wanted = [change(m, "7 s", match=one) for m in data.draw(st.sets(metrics, min_size=1))]
    new = edited(text, *wanted)
    before, after = (_limits(tomllib.loads(t)) for t in (text, new))
    assert after == {**before, **{(one, c.metric): {**before.get((one, c.metric), {}), "max": "7 s"} for c in wanted}}
    kept = iter(new.splitlines())
    changed = {c.metric for c in wanted}
    unchanged = [line for line in text.splitlines() if line.split(" ")[0] not in changed]
    assert all(line in kept for line in unchanged)  # in their order
    assert edited(new, *wanted) == new


def _limits(document: dict) -> dict:
    return {
        (Match(**table["match"]), name): limit
        for table in document.get("limit", [])
        for name, limit in table.items()
        if name != "match"
    }


def test_the_file_is_replaced_whole_through_links_with_its_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "thresholds.toml"
    real.write_text("\ufeff" + FILE, encoding="utf-8")
    real.chmod(0o640)
    link.symlink_to(real)
    seen = []
    before, after = rewrite(
        link, [change("ttft_p50", "1 s")], heading="x", check=lambda new: seen.append(new.read_text())
    )
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8") == after == seen[0]
    assert (before, after[0], real.stat().st_mode & 0o777) == ("\ufeff" + FILE, "\ufeff", 0o640)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["real.toml", "thresholds.toml"]


def test_what_does_not_pass_its_check_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text(FILE)

    def refuse(new: Path) -> None:
        raise ThresholdFileError(str(new), ["it is wrong"])

    with pytest.raises(ThresholdFileError, match="it is wrong"):
        rewrite(path, [change("ttft_p50", "1 s")], heading="x", check=refuse)
    assert path.read_text() == FILE
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "thresholds.toml"
    with pytest.raises(ThresholdFileError, match=r"thresholds\.toml: cannot be written: No such file"):
        rewrite(missing, [change("ttft_p50", "1 s")], heading="x", check=lambda new: None)
