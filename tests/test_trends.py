"""Stored runs become series: with a control engine as ratios, and with what was left out and why in the report."""

import random
from dataclasses import replace
from pathlib import Path

from pytest_vllmperf.adapters.history import StoredMetric, StoredRun
from pytest_vllmperf.domain.series import examine
from pytest_vllmperf.trends import history_section, series_of

HERE = {"hardware": "NVIDIA H200", "driver": "580", "model": "m"}


def value(engine: str, throughput: float, *, conditions: dict[str, str], subject: dict[str, object]) -> StoredMetric:
    info = {
        "kind": "load",
        "baseline": True,
        "conditions": conditions,
        "subject": subject,
        "outcomes": {"output_throughput": "PASS"},
    }
    return StoredMetric(
        fullname=f"{engine}/burst::output_throughput",
        metric="output_throughput",
        unit="tok/s",
        engine=engine,
        workload="burst",
        samples=(throughput,),
        extra_info=info,
    )


def nights(
    count: int, *, drop_from: int, drift: float, control: bool, conditions: dict[str, str] = HERE
) -> list[StoredRun]:
    """Nights whose machine drifts up and down by ``drift``; the candidate loses 6 % from night ``drop_from`` on."""
    chance, runs = random.Random(3), []
    for night in range(count):
        machine = 1 + drift * chance.uniform(-1, 1)
        mine = 1000 * machine * chance.uniform(0.997, 1.003) * (0.94 if night >= drop_from else 1)
        pinned = 500 * machine * chance.uniform(0.997, 1.003)
        commit = "b" * 40 if night >= drop_from else "a" * 40
        metrics = [value("candidate", mine, conditions=conditions, subject={"vllm": "0.32.0", "commit": commit})]
        if control:
            pinned_subject: dict[str, object] = {"vllm": "0.31.0", "control": True}
            metrics.append(value("stable", pinned, conditions=conditions, subject=pinned_subject))
        runs.append(
            StoredRun(
                path=Path(f"{night:04}.json"),
                datetime=f"2026-10-{night + 1:02}T02:00:00",
                machine_info={},
                commit_info={},
                metrics=tuple(metrics),
            )
        )
    return runs


def of_candidate(runs: list[StoredRun]) -> list:
    return [examine(s) for s in series_of(runs, engines=["candidate"]) if s.metric == "output_throughput"]


def test_a_control_engine_of_the_same_nights_uncovers_a_step_that_the_machines_drift_hides() -> None:
    runs = nights(20, drop_from=16, drift=0.15, control=True)
    (with_control,) = of_candidate(runs)
    (without,) = of_candidate(nights(20, drop_from=16, drift=0.15, control=False))
    assert with_control.series.control == "stable"
    assert with_control.trend.step is not None
    assert with_control.sentence.startswith("candidate/burst/output_throughput: -")
    assert "since 2026-10-17 (ratio to stable;" in with_control.sentence
    assert "commit aaaaaaaaa → bbbbbbbbb" in with_control.sentence
    assert without.series.control is None
    assert without.trend.step is None


def test_a_change_a_night_beside_the_step_is_named_with_its_date() -> None:
    runs = nights(20, drop_from=16, drift=0.15, control=True)
    late = [replace(run, metrics=tuple(_at_commit(m, "a" * 40) for m in run.metrics)) for run in runs[:17]]
    (found,) = of_candidate([*late, *runs[17:]])
    assert "commit aaaaaaaaa → bbbbbbbbb on 2026-10-18" in found.sentence


def _at_commit(stored: StoredMetric, commit: str) -> StoredMetric:
    subject = stored.extra_info["subject"]
    if not isinstance(subject, dict) or subject.get("control"):
        return stored
    return replace(stored, extra_info={**stored.extra_info, "subject": {**subject, "commit": commit}})


def test_the_section_tells_which_runs_were_left_out_and_why() -> None:
    old = nights(5, drop_from=99, drift=0.01, control=False, conditions={**HERE, "driver": "570"})
    new = [*nights(12, drop_from=99, drift=0.01, control=False)]
    section = history_section([examine(s) for s in series_of([*old, *new])], ["history file x was skipped"])
    assert section is not None
    assert section.notes == (
        "5 runs left out: driver was 570, and is 580 now",
        "history file x was skipped",
    )
    (row,) = section.tables[0].rows
    assert row[5] == "11"
    assert section.kind == "shown"


def test_a_step_stands_in_the_section_with_its_plot() -> None:
    found = of_candidate(nights(20, drop_from=16, drift=0.15, control=True))
    section = history_section(found)
    assert section is not None
    assert section.kind == "inconclusive"
    assert [plot.title for plot in section.lines] == ["candidate/burst/output_throughput, ratio to stable"]
    (marker,) = section.lines[0].markers
    assert (marker.x, marker.kind) == (15.5, "fail")
