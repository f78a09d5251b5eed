from dataclasses import replace

import pytest

from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.series import Point, Shift, comparable, examine, subject_change
from pytest_vllmperf.suspicion import last_good

HERE = {"hardware": "NVIDIA H200", "driver": "570.1", "workload": "50 × 128/256 tokens, 50 at once"}
SUBJECT = {"vllm": "0.31.0", "commit": "a" * 40, "args": {"x": 1}, "env": {}, "python": None, "command": None}
WOBBLE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.002, 0.998, 1.008, 0.992, 1.004, 0.996, 1.001, 0.999, 1.003, 0.997)


def point(day: int, value: float | None, **changes: object) -> Point:
    made = Point(when=f"2026-11-{day:02}T02:00:00", value=value, conditions=HERE, subject=SUBJECT)
    return replace(made, **changes)  # type: ignore[arg-type]


def series(points: list[Point], **kwargs: object):
    return comparable("max-perf", "burst", "ttft_mean", points, **kwargs)  # type: ignore[arg-type]


LEVEL = [point(day, 0.2 * wobble) for day, wobble in enumerate(WOBBLE, start=1)]


def test_only_runs_under_equal_conditions_are_compared_and_the_others_are_told_of() -> None:
    older = [replace(p, conditions={**HERE, "driver": "550.9"}) for p in LEVEL[:3]]
    unsound = [replace(LEVEL[3], sound=False)]
    unknown = [replace(LEVEL[4], conditions={})]
    found = series([*older, *unsound, *unknown, *LEVEL[5:]])
    assert len(found.points) == 10
    assert found.left_out == (
        "3 runs left out: driver was 550.9, and is 570.1 now",
        "1 run left out: not sound: it failed, was interrupted, quick, or ran on an engine used before",
        "1 run left out: nothing is known of its conditions",
    )


def test_another_version_is_compared_and_an_upgrade_shows() -> None:
    new = {**SUBJECT, "vllm": "0.32.0"}
    slower = [point(16 + i, 0.25 * wobble, subject=new) for i, wobble in enumerate(WOBBLE[:4])]
    finding = examine(series([*LEVEL, *slower]))
    assert finding.trend.step is not None
    assert finding.began is slower[0]
    assert finding.changed == "vLLM 0.31.0 → 0.32.0"
    assert finding.sentence.startswith("max-perf/burst/ttft_mean: +25")
    assert "since 2026-11-16 (raw values, no control engine" in finding.sentence


def test_a_run_outside_the_prediction_is_suspicious_and_nothing_more() -> None:
    finding = examine(series([*LEVEL, point(16, 0.3)]))
    assert finding.history.suspicious
    assert finding.trend.step is None
    assert "suspicious, to be confirmed by the relative gate" in finding.sentence
    assert not examine(series([*LEVEL, point(16, 0.2)])).history.suspicious


def test_a_control_engine_takes_the_machines_own_drift_out() -> None:
    slow_nights = [point(16 + i, 0.25 * w, control=0.125) for i, w in enumerate(WOBBLE[:4])]
    with_control = [replace(p, control=0.1) for p in LEVEL]
    finding = examine(series([*with_control, *slow_nights], control="pinned"))
    assert finding.series.control == "pinned"
    assert finding.trend.step is None  # both engines are slower: it is the machine
    without = examine(series([*LEVEL, *slow_nights], control="pinned"))
    assert without.series.control is None  # some nights lack the control engine: raw values
    assert without.trend.step is not None


@pytest.mark.parametrize("metric", ["ttft_mean", "*"])
def test_an_accepted_shift_resets_the_window(metric: str) -> None:
    slower = [point(16 + i, 0.25 * wobble) for i, wobble in enumerate(WOBBLE[:4])]
    shift = Shift(engine="max-perf", workload="*", metric=metric, since="2026-11-16", reason="meant")
    found = series([*LEVEL, *slower], accepted=[shift])
    assert len(found.points) == 4
    assert found.left_out == ("15 runs left out: before the shift accepted for 2026-11-16",)
    other = replace(shift, engine="baseline")
    assert len(series([*LEVEL, *slower], accepted=[other]).points) == 19


def test_no_runs_are_no_series() -> None:
    assert series([]).points == ()


def test_what_changed_is_told_in_words() -> None:
    after = point(2, 1.0, subject={**SUBJECT, "commit": "b" * 40, "args": {"x": 2}})
    assert subject_change(point(1, 1.0), after) == "commit aaaaaaaaa → bbbbbbbbb, args changed"


ENGINE = EngineConfig(name="max-perf", model="m", args={"x": 2})


def test_the_last_good_engine_has_the_flags_of_the_latest_other_subject() -> None:
    now = point(3, 1.0, subject={**SUBJECT, "args": {"x": 2}})
    found = last_good(ENGINE, [point(1, 1.0), point(2, 1.0), now])
    assert isinstance(found, EngineConfig)
    assert (found.name, dict(found.args)) == ("max-perf.before", {"x": 1})


@pytest.mark.parametrize(
    ("engine", "now", "why"),
    [
        (None, SUBJECT, "it is not declared here"),
        (ENGINE, SUBJECT, "the machine, or what runs on it, has changed"),
        (ENGINE, {**SUBJECT, "vllm": "0.32.0"}, "vLLM 0.31.0 is not installed any more; keep it in an environment"),
    ],
)
def test_why_a_last_good_engine_cannot_be_launched(engine: EngineConfig | None, now: dict, why: str) -> None:
    found = last_good(engine, [point(1, 1.0), point(2, 1.0, subject=now)])
    assert isinstance(found, str)
    assert why in found
