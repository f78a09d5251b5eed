import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from summaries import load_summary

from pytest_vllmperf.domain.calibration import Action, Proposal, propose
from pytest_vllmperf.domain.calibration_section import calibration_section
from pytest_vllmperf.domain.levels import judge_level
from pytest_vllmperf.domain.metrics import METRICS, Better
from pytest_vllmperf.domain.replicates import pooled
from pytest_vllmperf.domain.summary import MetricValue, Summary
from pytest_vllmperf.domain.thresholds import Limit, LimitTable, Match, Outcome, Subject, Thresholds
from pytest_vllmperf.domain.units import parse_quantity

SUBJECT = Subject(hardware="NVIDIA H200", model="m", engine="e", workload="w")


def launch(values: dict[str, float], *, ttft: tuple[float, ...] = (0.2,), **changes: object) -> Summary:
    return load_summary(distributions={"ttft": ttft}, scalars=values, **changes)


def launches(metric: str, *values: float) -> Summary:
    return pooled([launch({metric: value}) for value in values], kind="launch")


def file(
    metric: str, *, most: float | None = None, least: float | None = None, match: Match | None = None
) -> Thresholds:
    limit = Limit(
        metric=metric, maximum=most, minimum=least, tolerance=0.03, required=True, where="thresholds.toml: x", text="so"
    )
    table = LimitTable(match=match or Match(), limits={metric: limit}, where="thresholds.toml: limit[1]")
    return Thresholds(tables=(table,), quality_tasks={})


NOTHING = Thresholds(quality_tasks={})


def proposed(summary: Summary, metric: str, limits: Thresholds = NOTHING, *, force: bool = False) -> Proposal:
    return propose(summary, metric, subject=SUBJECT, thresholds=limits, force=force)


def test_the_bound_is_the_tolerance_beyond_students_prediction_bound_over_launches() -> None:
    found = proposed(launches("time_to_ready", 50.0, 60.0, 95.0), "time_to_ready")
    logs = [math.log(v) for v in (50.0, 60.0, 95.0)]
    mean = sum(logs) / 3
    sd = math.sqrt(sum((x - mean) ** 2 for x in logs) / 2)
    expected = math.exp(mean + t.ppf(0.99, 2) * sd * math.sqrt(4 / 3)) * 1.3
    assert found.level == pytest.approx(math.exp(mean))
    assert found.spread == pytest.approx(sd)
    assert found.bound is not None
    assert expected <= found.bound <= expected * 1.01  # three digits, never nearer to the level
    assert found.action is Action.ADDED


def test_launches_as_equal_as_these_leave_the_metrics_tolerance() -> None:
    found = proposed(launches("output_throughput", 1000.0, 1000.1, 999.9), "output_throughput")
    assert found.bound == pytest.approx(1000 / 1.05, rel=0.01)
    assert found.bound < 1000 / 1.05
    assert found.change is not None
    assert (found.change.key, found.change.value) == ("min", "951 tok/s")


@given(
    metric=st.sampled_from(["ttft_mean", "output_throughput", "host_memory_peak", "preemptions", "time_to_ready"]),
    values=st.lists(st.floats(1e-3, 1e12), min_size=3, max_size=8),
)
def test_a_proposed_limit_reads_as_its_bound_and_every_launch_meets_it_by_its_level(
    metric: str, values: list[float]
) -> None:
    values = [float(math.ceil(v)) for v in values] if metric == "preemptions" else values
    summaries = [launch({metric: v}) if metric != "ttft_mean" else launch({}, ttft=(v,)) for v in values]
    found = proposed(pooled(summaries, kind="launch"), metric)
    if found.action is Action.NONE:
        assert "so far apart" in found.reason
        return
    entry = METRICS[metric]
    assert found.change is not None
    assert found.bound is not None
    assert found.level is not None
    assert parse_quantity(found.change.value, unit=entry.unit) == found.bound
    if entry.better is Better.LOWER:
        assert found.bound >= found.level * (1 + entry.tolerance) * (1 - 1e-12)
    else:
        assert found.bound <= found.level / (1 + entry.tolerance) * (1 + 1e-12)
    for worst in [max(values)] if entry.unit in ("B", "count") else []:
        assert found.bound >= worst


def test_the_limit_belongs_to_this_hardware_model_engine_and_workload_exactly() -> None:
    found = proposed(launches("time_to_ready", 50.0, 51.0, 52.0), "time_to_ready")
    assert found.change is not None
    assert found.change.match == Match(hardware="NVIDIA H200", model="m", engine="e", workload="w")


@pytest.mark.parametrize(
    ("most", "force", "action", "told"),
    [
        (500.0, False, Action.TIGHTENED, "instead of so (thresholds.toml: x)"),
        (58.0, False, Action.KEPT, "nearer than chance allows for"),
        (58.0, True, Action.LOOSENED, "instead of so"),
        (40.0, False, Action.KEPT, "which it misses; --vllmperf-force would loosen it"),
        (None, False, Action.ADDED, "is new"),
    ],
)
def test_a_limit_is_tightened_and_loosened_by_force_only(
    most: float | None, force: bool, action: Action, told: str
) -> None:
    limits = file("time_to_ready", most=most, match=Match(engine="*"))
    found = proposed(launches("time_to_ready", 49.0, 50.0, 51.0), "time_to_ready", limits, force=force)
    assert found.action is action
    assert told in found.reason
    assert (found.change is None) == (action is Action.KEPT)


def test_calibrating_again_from_the_same_launches_changes_nothing() -> None:
    summary = launches("time_to_ready", 49.0, 50.0, 51.0)
    first = proposed(summary, "time_to_ready")
    again = proposed(summary, "time_to_ready", file("time_to_ready", most=first.bound))
    assert (again.action, again.change) == (Action.KEPT, None)
    assert "so stays" in again.reason


@pytest.mark.parametrize(
    ("summary", "metric", "told"),
    [
        (
            launch({"output_throughput": 5.0}),
            "output_throughput",
            "measured on one launch, and 3 are needed: name it be",
        ),
        (
            launches("output_throughput", 5.0, 6.0),
            "output_throughput",
            "2 launches, and 3 are needed: give --vllmperf-l",
        ),
        (
            replace(launches("output_throughput", 5.0, 6.0, 7.0), invalid=("the client was late",)),
            "output_throughput",
            "the measurement is INVALID: the client was late",
        ),
        (
            replace(launches("output_throughput", 5.0, 6.0, 7.0), failures={"timeout": 2}),
            "output_throughput",
            "2 of 30 requests failed",
        ),
        (launches("output_throughput", 5.0, 6.0, 7.0), "ttft_p99", "1 samples a launch, and p99 needs 459"),
        (launches("output_throughput", 5.0, 6.0, 7.0), "error_rate", "judged against 0 without a limit"),
        (launches("kv_cache_usage_peak", 0.5, 0.6, 0.7), "kv_cache_usage_peak", "neither direction is better"),
        (launches("goodput", 0.0, 1.0, 2.0), "goodput", "so far apart that no limit would mean anything"),
    ],
)
def test_what_is_no_source_of_a_limit_says_why(summary: Summary, metric: str, told: str) -> None:
    found = proposed(summary, metric)
    assert found.action is Action.NONE
    assert found.change is None
    assert told in found.reason


def test_a_limit_far_from_its_level_asks_for_more_launches() -> None:
    found = proposed(launches("time_to_ready", 40.0, 60.0, 80.0), "time_to_ready")
    assert "as 3 launches differ much: --vllmperf-launches=8 tells more" in found.reason
    assert "tells more" not in proposed(launches("time_to_ready", 59.0, 60.0, 61.0), "time_to_ready").reason


def test_counts_that_were_always_zero_are_allowed_none() -> None:
    found = proposed(launches("preemptions", 0.0, 0.0, 0.0), "preemptions")
    assert found.change is not None
    assert (found.change.key, found.change.value) == ("max", 0)


def answers(right: int, wrong: int) -> Summary:
    samples = (1.0,) * right + (0.0,) * wrong
    accuracy = MetricValue(name="accuracy", value=right / len(samples), n=len(samples), samples=samples, missing=None)
    return launch({}, kind="quality", metrics={"accuracy": accuracy})


def test_a_floor_of_answers_is_their_exact_lower_bound_and_they_meet_it_again() -> None:
    summary = answers(160, 40)
    found = proposed(summary, "accuracy")
    assert found.bound is not None
    assert 0.70 < found.bound < 0.73
    assert found.reason.startswith("80 % of 200 questions")
    limit = Limit(
        metric="accuracy", maximum=None, minimum=found.bound, tolerance=None, required=False, where="", text=""
    )
    assert judge_level(summary, "accuracy", limit).outcome is Outcome.PASS


def test_too_few_right_answers_have_no_floor() -> None:
    assert "for a floor" in proposed(answers(1, 9), "accuracy").reason


def test_the_section_counts_what_was_done_and_says_why_the_rest_was_not() -> None:
    good = launches("time_to_ready", 49.0, 50.0, 51.0)
    none = [proposed(good, metric) for metric in ("error_rate", "ttft_p99")]
    found = calibration_section([proposed(good, "time_to_ready"), *none], file="thresholds.toml", failure=None)
    assert found.sentences[0] == "thresholds.toml: 1 added"
    assert found.sentences[1].startswith("2 without a limit: e × w error_rate: failed requests")
    noisy = proposed(launches("time_to_ready", 20.0, 50.0, 80.0), "time_to_ready")
    warned = calibration_section([proposed(good, "time_to_ready"), noisy], file="thresholds.toml", failure=None)
    assert warned.sentences[1].startswith("1 far from the level, up to ")
    assert "times (e × w time_to_ready): the launches differ much" in warned.sentences[1]
    failed = calibration_section([], file="thresholds.toml", failure="no limits were written: why")
    assert (failed.sentences, failed.kind) == (("no limits were written: why",), "invalid")
