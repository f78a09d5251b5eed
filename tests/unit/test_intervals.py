import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from streams import limit

from pytest_vllmperf.domain.intervals import AbsoluteVerdict, judge_absolute, judged_by_worst, looks_for
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.thresholds import Limit, Outcome
from pytest_vllmperf.errors import ConfigError, UnknownMetric

MEAN = limit("ttft_mean", maximum=0.3, text="≤ 300 ms")
TAIL = limit("ttft_p99", maximum=0.3, text="≤ 300 ms")
SPEED = limit("output_throughput", minimum=100.0, text="≥ 100 tok/s")
MEMORY = limit("device_memory_peak", maximum=8 * 2**30, text="≤ 8 GiB")


def judged(values: list[float | None], bound: Limit = MEAN, **changed: object) -> AbsoluteVerdict:
    given_by_default = {"samples": 1000, "replicate": "launch", "budget": max(1, len(values))}
    return judge_absolute(values, bound, **{**given_by_default, **changed})  # type: ignore[arg-type]


@given(st.lists(st.floats(0.05, 2.0), min_size=3, max_size=8), st.floats(0.05, 2.0))
def test_the_outcome_follows_from_the_interval_of_the_geometric_mean(values: list[float], maximum: float) -> None:
    verdict = judged(list(values), limit("ttft_mean", maximum=maximum))
    logs, n = [math.log(v) for v in values], len(values)
    share = looks_for(metric("ttft_mean"), n).share(n)
    reach = t.ppf(1 - 0.05 * share, n - 1) * statistics.stdev(logs) / math.sqrt(n)
    low, high = (math.exp(statistics.fmean(logs) + sign * reach) for sign in (-1, 1))
    assert verdict.low == pytest.approx(low, rel=1e-6)
    assert verdict.high == pytest.approx(high, rel=1e-6)
    if min(abs(low - maximum), abs(high - maximum)) > 1e-6 * maximum:
        expected = Outcome.PASS if high <= maximum else Outcome.FAIL if low > maximum else Outcome.INCONCLUSIVE
        assert verdict.outcome is expected


@given(st.lists(st.floats(50, 200), min_size=3, max_size=8))
def test_a_minimum_is_judged_from_the_other_side(values: list[float]) -> None:
    verdict = judged(list(values), SPEED)
    assert verdict.low is not None
    assert verdict.high is not None
    if verdict.outcome is Outcome.PASS:
        assert verdict.low >= 100
    elif verdict.outcome is Outcome.FAIL:
        assert verdict.high < 100
    else:
        assert verdict.low < 100 <= verdict.high


@given(
    st.lists(st.floats(0.05, 2.0), min_size=1, max_size=8),
    st.data(),
    st.sampled_from([None, math.nan, math.inf]),
    st.sampled_from([MEAN, TAIL, limit("error_rate", maximum=0.5), limit("device_memory_peak", maximum=1e12)]),
)
def test_a_missing_value_is_invalid_for_every_kind_of_metric(
    values: list[float], data: st.DataObject, broken: float | None, bound: Limit
) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    verdict = judged([*values[:place], broken, *values[place + 1 :]], bound)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.next_look is None
    assert f"launch {place + 1} of {len(values)}" in verdict.reason


def test_no_replicates_and_no_samples_are_invalid() -> None:
    assert judged([]).outcome is Outcome.INVALID
    assert judged([]).reason == "TTFT mean was not measured: nothing was measured: no launch"
    assert judged([0.1] * 3, samples=0).outcome is Outcome.INVALID
    assert judged([0.1] * 3, samples=0).reason == "TTFT mean was not measured: no samples behind the value"


@pytest.mark.parametrize(
    ("budget", "looks"), [(1, (1,)), (2, (2,)), (3, (3,)), (4, (3, 4)), (5, (3, 5)), (8, (3, 5, 8)), (20, (3, 5, 8))]
)
def test_launches_are_judged_at_three_five_and_eight_and_at_the_budget(budget: int, looks: tuple[int, ...]) -> None:
    assert looks_for(metric("ttft_mean"), budget).at == looks


def test_an_open_question_asks_for_more_launches_until_the_budget() -> None:
    first = judged([0.29, 0.31, 0.30], budget=8)
    assert (first.outcome, first.next_look) == (Outcome.INCONCLUSIVE, 5)
    assert first.reason.endswith("does not tell on which side of ≤ 300 ms the level lies; 2 more needed")
    last = judged([0.29, 0.31, 0.30])
    assert (last.outcome, last.next_look) == (Outcome.INCONCLUSIVE, None)
    assert last.reason.endswith("the budget of 3 is used up")


def test_nothing_is_decided_between_looks() -> None:
    verdict = judged([0.1, 0.1, 0.1, 0.1], budget=8)
    assert (verdict.outcome, verdict.next_look) == (Outcome.INCONCLUSIVE, 5)
    assert verdict.reason.endswith("is not judged yet; the looks are at 3, 5, 8")


def test_one_replicate_has_no_interval_and_decides_nothing() -> None:
    verdict = judged([0.1], replicate="round")
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.low is verdict.high is None
    assert verdict.reason == "TTFT mean 100 ms: one round has no interval"


def test_a_verdict_over_rounds_says_that_it_saw_one_launch() -> None:
    verdict = judged([0.1, 0.11, 0.1], replicate="round")
    assert verdict.word == "PASS (1 launch)"
    assert verdict.reason == "TTFT mean 103 ms [94.1 ms … 113 ms] over 3 rounds meets ≤ 300 ms"
    assert judged([0.1, 0.11, 0.1]).word == "PASS"


def test_a_p99_never_passes_on_fewer_than_459_requests_or_five_replicates() -> None:
    few = judged([0.1] * 5, TAIL, samples=458)
    assert few.outcome is Outcome.NOT_JUDGED
    assert few.reason == "TTFT p99 not judged, n = 458 (p99 needs 459)"
    required = limit("ttft_p99", maximum=0.3, required=True)
    assert judged([0.1] * 5, required, samples=458).outcome is Outcome.INCONCLUSIVE
    for n in (2, 3, 4):
        verdict = judged([0.1] * n, TAIL)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason.endswith("would meet ≤ 300 ms, but a p99 needs 5 of them to pass")
    assert judged([0.1] * 5, TAIL, samples=459).outcome is Outcome.PASS


def test_a_high_percentile_gets_the_less_error_the_fewer_samples_are_beyond_it() -> None:
    values = [0.10, 0.11, 0.12, 0.10, 0.11]
    mean, tail = judged(list(values), budget=5), judged(list(values), TAIL)
    assert tail.confidence == pytest.approx(0.975)
    assert judged(list(values), TAIL, samples=799).confidence == pytest.approx(0.9875)
    assert judged(list(values), TAIL, samples=5000).confidence == pytest.approx(0.95)
    assert mean.confidence == pytest.approx(1 - 0.05 * 2 / 5)
    for samples, share in ((1000, 1), (999, 2), (160, 2), (159, 4), (80, 4), (79, 8), (60, 8)):
        p95 = judged(list(values), limit("ttft_p95", maximum=0.3), samples=samples, budget=5)
        assert p95.confidence == pytest.approx(1 - 0.05 / share * 2 / 5), samples
    few = judged(list(values), limit("ttft_p50", maximum=0.3), samples=3, budget=5)
    assert few.confidence == mean.confidence  # a median of few is noisy, and right on average
    fails = judged([v + 1 for v in values[:3]], TAIL)
    assert fails.outcome is Outcome.FAIL


def test_memory_is_judged_by_the_worst_launch() -> None:
    gib = 2**30
    assert judged_by_worst(metric("device_memory_peak"))
    verdict = judged([7 * gib, 9 * gib, 7 * gib], MEMORY)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.value == 9 * gib
    assert verdict.reason == "device memory peak 9 GiB, the worst of 3 launches, misses ≤ 8 GiB"
    assert judged([7 * gib], MEMORY).reason == "device memory peak 7 GiB, the worst of 1 launch, meets ≤ 8 GiB"


def test_one_failed_request_in_any_round_is_one_too_many() -> None:
    none_allowed = limit("error_rate", maximum=0.0, text="≤ 0 %")
    assert judged([0.0, 0.0, 0.01], none_allowed, replicate="round").outcome is Outcome.FAIL
    assert judged([0.0, 0.0, 0.0], none_allowed, replicate="round").outcome is Outcome.PASS


def test_a_rate_of_zero_is_a_level_like_any_other() -> None:
    goodput = limit("goodput", minimum=2.0, text="≥ 2 req/s")
    assert judged([0.0, 0.0, 0.1], goodput).outcome is Outcome.FAIL
    assert judged([0.0, 3.0, 2.0], goodput).outcome is Outcome.INCONCLUSIVE


def test_a_limit_on_both_sides_needs_the_interval_between_them() -> None:
    both = limit("tpot_mean", minimum=0.01, maximum=0.02)
    assert judged([0.015, 0.0151, 0.0149], both).outcome is Outcome.PASS
    assert judged([0.005, 0.0051, 0.0049], both).outcome is Outcome.FAIL
    assert judged([0.03, 0.0301, 0.0299], both).outcome is Outcome.FAIL
    assert judged([0.019, 0.02, 0.021], both).outcome is Outcome.INCONCLUSIVE


def test_a_limit_that_bounds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="ttft_mean has neither max nor min"):
        judged([0.1] * 3, limit("ttft_mean", tolerance=0.05))


def test_a_bare_distribution_has_no_level() -> None:
    with pytest.raises(UnknownMetric, match="is a distribution"):
        judged([0.1] * 3, limit("ttft", maximum=0.3))
