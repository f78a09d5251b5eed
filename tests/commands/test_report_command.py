"""`vllmperf report` and `vllmperf compare`: runs found by path and in history, rebuilt and set side by side."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import report_samples as sample

from pytest_vllmperf import cli
from pytest_vllmperf.adapters import benchmark_storage, history, writers
from pytest_vllmperf.domain.report import Report
from pytest_vllmperf.domain.thresholds import Outcome
from pytest_vllmperf.recall import find_report, read_report


def store(report: Report, storage: Path) -> Path:
    """Save a run as the plugin would."""
    extra = {
        "hardware": report.environment.hardware,
        "vllm": "0.32.0",
        "commit": "0123abc",
        "started_at": report.started_at,
        "exit_code": report.exit_code,
        "baseline": True,
        "outcomes": {f"{v.engine}/{v.workload}::{v.metric}": str(v.outcome) for v in report.verdicts},
    }
    content = history.run_as_file(report.summaries, extra=extra, machine_info={}, at=report.started_at)
    return benchmark_storage.save_run(storage, content, hardware=report.environment.hardware, name="test")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with one report, and two runs in history, of which the second is slower."""
    writers.write_json(sample.troubled(), tmp_path / "reports" / "latest" / "report.json")
    first = replace(sample.troubled(), started_at="2026-01-01T00:00:00+00:00")
    slower = tuple(sample.load(s.engine, s.workload, scale=2.0) if s.kind == "load" else s for s in first.summaries)
    store(first, tmp_path / ".benchmarks")
    store(replace(first, started_at="2026-01-02T00:00:00+00:00", summaries=slower), tmp_path / ".benchmarks")
    return tmp_path


def test_a_report_read_back_is_the_report(project: Path) -> None:
    assert read_report(project / "reports/latest/report.json") == sample.troubled()


def test_a_report_is_built_again_with_history_beside_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "-C", str(project), "--formats", "html,md"]) == 0
    assert capsys.readouterr().out.startswith("2026-01-02T03:04:05+00:00: Engine broken failed; 1 FAIL")
    built = project / "reports" / "rebuilt"
    assert sorted(path.name for path in built.iterdir()) == ["index.html", "report.md"]
    assert 'class="spark"' in (built / "index.html").read_text(encoding="utf-8")


def test_a_stored_run_is_built_again_as_far_as_history_goes(project: Path) -> None:
    report = find_report("1", directory=project, storage=project / ".benchmarks")
    first = sample.troubled().summaries[0]
    rebuilt = report.summaries[0]
    assert rebuilt.metrics["ttft_mean"].value == pytest.approx(first.metrics["ttft_mean"].value)
    assert rebuilt.metrics["ttft"].samples == pytest.approx(first.metrics["ttft"].samples)
    outcomes = {(v.engine, v.workload, v.metric): v.outcome for v in report.verdicts}
    assert outcomes["baseline", "burst", "ttft_mean"] is Outcome.FAIL
    assert report.environment.hardware == "NVIDIA H200"
    assert report.problems == (
        "rebuilt from 0001_test.json: limits, timelines, flags and logs are not kept in history",
    )
    assert cli.main(["report", "0001", "-C", str(project)]) == 0
    assert (project / "reports/rebuilt/index.html").stat().st_size > 10_000


def test_latest_counts_back(project: Path) -> None:
    found = [find_report(name, directory=project, storage=project / ".benchmarks") for name in ("latest", "latest~1")]
    assert [report.started_at[:10] for report in found] == ["2026-01-02", "2026-01-01"]


@pytest.mark.parametrize("source", ["nothing", "7", "latest~2", "latest~x"])
def test_what_is_not_there_is_told_with_what_is(project: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    assert cli.main(["report", source, "-C", str(project)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"vllmperf: {source}: no report at {project}/{source}, and no such run in {project}/.bench")
    assert "its latest: 0001 (2026-01-01T00:00), 0002 (2026-01-02T00:00)" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a report.json that can be read"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 99}', "schema_version is 99, this version of vllmperf reads 1"),
        ('{"schema_version": 1}', "missing required field"),
    ],
)
def test_a_broken_report_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    (tmp_path / "report.json").write_text(content)
    assert cli.main(["report", "report.json", "-C", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$id"] == "urn:pytest-vllmperf:report:1"


def test_two_engines_of_one_run_are_compared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "baseline", "max-perf", "-C", str(project), "--metric", "ttft_mean"]) == 0
    head, row, told = capsys.readouterr().out.splitlines()
    assert head.split() == ["measurement", "metric", "baseline", "max-perf", "change"]
    assert row.split()[:2] == ["burst", "ttft_mean"]
    assert row.endswith("better")
    assert told == "1 better, 0 worse of 1 beyond their tolerances; one launch each: not a verdict."


def test_two_runs_are_compared_in_the_direction_of_each_metric(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "latest~1", "latest", "-C", str(project), "--json", "--changed"]) == 0
    found = {d["metric"]: d for d in json.loads(capsys.readouterr().out)["differences"] if "baseline" in d["subject"]}
    assert found["output_throughput"]["judgement"] == "worse"
    assert found["output_throughput"]["change"] == pytest.approx(-0.5)
    assert found["tpot_mean"]["judgement"] == "worse"
    assert found["tpot_mean"]["change"] > 0
    assert "accuracy" not in found, "it did not move"


def test_a_broken_measurement_and_a_missing_one_are_never_compared(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "reports/latest", "latest", "-C", str(project), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    heavy = [d for d in found if d["subject"] == "max-perf / heavy"]
    assert heavy
    assert {d["judgement"] for d in heavy} == {"only in B"}


def test_an_unknown_metric_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "baseline", "max-perf", "-C", str(project), "--metric", "ttft_avg"]) == 2
    assert "metric 'ttft_avg' is unknown; did you mean" in capsys.readouterr().err
