"""vllmperf bisect: which engines stand in the row, and what is told of the search.

Launches are made up here: gates over real processes are tested with the comparison.
"""

import json
import sys
from pathlib import Path

import pytest

from pytest_vllmperf.cli import main
from pytest_vllmperf.commands.bisect import row
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.errors import EngineConfigError
from pytest_vllmperf.experiment import Launch

FAKE = str(Path(__file__).parents[1] / "fake_engine.py")
SERVED = EngineConfig(name="served", model="m", args={"seed": 1})
CONFTEST = """
from pytest_vllmperf import EngineConfig, Workload

def pytest_vllmperf_engines(config):
    fast, slow = {{"fake-ttft-ms": 60.0}}, {{"fake-ttft-ms": 600.0}}
    return [
        EngineConfig(name=name, model="fake-model", command=({python!r}, {fake!r}), args=args)
        for name, args in (("a", fast), ("b", slow), ("c", slow))
    ]

def pytest_vllmperf_workloads(config):
    return [Workload(name="tiny", input_tokens=16, output_tokens=4, requests=2, max_concurrency=2)]
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST.format(python=sys.executable, fake=FAKE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def environments(tmp_path) -> Path:
    for version in ("0.9", "0.10", "0.11", "1.0"):
        program = tmp_path / f"vllm-{version}" / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.touch()
    (tmp_path / "notes").mkdir()
    return tmp_path


class Made:
    """In the place of PoolLauncher: engine "a" is fast, the others are slow."""

    def __init__(self, **_kwargs) -> None:
        self.count = 0

    def measure(self, engine, asked):
        self.count += 1
        (what,) = asked
        values = metric_values(
            distributions={"ttft": [(0.06 if engine.name == "a" else 0.6) * (1 + 0.001 * (self.count % 3))]},
            scalars={"error_rate": 0.0},
        )
        summary = Summary(
            engine=engine.name,
            workload=what.name,
            kind="load",
            model="m",
            description="",
            requests=2,
            completed=2,
            failures={},
            duration_s=1.0,
            metrics=values,
            invalid=(),
            warnings=(),
            facts={},
        )
        return Launch(engine=engine.name, number=self.count, version=None, summaries={what.name: summary})


def test_the_first_bad_engine_is_found_and_told(project, capsys, monkeypatch):
    monkeypatch.setattr("pytest_vllmperf.experiment.PoolLauncher", Made)
    asked = ["bisect", "--good", "a", "--bad", "c", "--workload", "tiny", "--metric", "ttft_p50"]
    assert main([*asked, "--json", "-C", str(project)]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["first_bad"] == "b"
    assert found["sentence"].startswith("first bad: b (a is good); TTFT p50 +90")
    assert [trial["step"] for trial in found["trials"]] == ["bad", "bad"]
    assert "bisect: 3 environments, about 3 steps of 8 to 20 launches on tiny" in told.err


def test_an_unknown_answer_has_an_exit_code_of_its_own(project, capsys, monkeypatch):
    monkeypatch.setattr("pytest_vllmperf.experiment.PoolLauncher", Made)
    asked = ["bisect", "--good", "b", "--bad", "c", "--workload", "tiny", "--metric", "ttft_p50"]
    assert main([*asked, "-C", str(project)]) == 11
    assert "bisect does not know: the bad end does not differ from the good one" in capsys.readouterr().out


def test_environments_between_are_those_beside_by_version(environments):
    made = row(
        str(environments / "vllm-0.9"), str(environments / "vllm-1.0"), [], engines={"served": SERVED}, served=SERVED
    )
    assert [engine.name for engine in made] == [f"served.vllm-{v}" for v in ("0.9", "0.10", "0.11", "1.0")]
    assert made[1].python == str(environments / "vllm-0.10" / "bin" / "python")
    assert dict(made[1].args) == {"seed": 1}


def test_environments_may_be_named_one_by_one(environments):
    names = [str(environments / f"vllm-{v}") for v in ("0.9", "1.0")]
    middle = str(environments / "vllm-0.11" / "bin" / "python")
    made = row(names[0], names[1], [middle], engines={"served": SERVED}, served=SERVED)
    assert [engine.name for engine in made] == ["served.vllm-0.9", "served.vllm-0.11", "served.vllm-1.0"]


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ("nowhere", "served", "environment 'nowhere' is no engine of served, and there is no nowhere"),
        ("served", "served", "does not stand before"),
    ],
)
def test_rows_that_cannot_be_are_told(good, bad, told):
    with pytest.raises(EngineConfigError, match=told):
        row(good, bad, [], engines={"served": SERVED}, served=SERVED)


def test_a_wrong_order_is_told(environments):
    with pytest.raises(EngineConfigError, match="does not stand before --bad"):
        row(
            str(environments / "vllm-1.0"),
            str(environments / "vllm-0.9"),
            [],
            engines={"served": SERVED},
            served=SERVED,
        )


def test_an_unknown_engine_is_one_line(project, capsys):
    assert main(["bisect", "--good", "a", "--bad", "c", "--engine", "z", "-C", str(project)]) == 2
    assert capsys.readouterr().err == "vllmperf: --engine z: no such engine; declared: a, b, c\n"
