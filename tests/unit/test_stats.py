import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.metrics import STATISTICS
from pytest_vllmperf.domain.stats import peak_window_rate, reduce_samples

SAMPLES = st.lists(st.floats(0, 1e9, allow_subnormal=False), min_size=1, max_size=60)
NS = 1_000_000_000


def percentile(samples: list[float], q: Fraction) -> float:
    """Linear interpolation between order statistics, in exact arithmetic."""
    ordered = [Fraction(s) for s in sorted(samples)]
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


@given(SAMPLES, st.sampled_from([("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)]))
def test_percentiles_interpolate_linearly_between_order_statistics(
    samples: list[float], which: tuple[str, int]
) -> None:
    name, percent = which
    assert reduce_samples(samples, name) == pytest.approx(
        percentile(samples, Fraction(percent, 100)), rel=1e-9, abs=1e-9
    )


@given(SAMPLES)
def test_the_mean_is_the_sum_over_the_count(samples: list[float]) -> None:
    exact = float(sum(map(Fraction, samples)) / len(samples))
    assert reduce_samples(samples, "mean") == pytest.approx(exact, rel=1e-9, abs=1e-12)


@given(SAMPLES)
def test_percentiles_rise_with_the_quantile_and_stay_within_the_samples(samples: list[float]) -> None:
    values = [reduce_samples(samples, name) for name in ("p50", "p90", "p95", "p99")]
    assert all(v is not None for v in values)
    assert values == sorted(values)  # type: ignore[type-var]
    assert min(samples) <= values[0]  # type: ignore[operator]
    assert values[-1] <= max(samples)  # type: ignore[operator]


@given(SAMPLES, st.randoms())
def test_the_order_of_samples_does_not_matter(samples: list[float], random: object) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for name in STATISTICS:
        assert reduce_samples(shuffled, name) == pytest.approx(reduce_samples(samples, name), rel=1e-12)


@pytest.mark.parametrize("name", list(STATISTICS))
def test_one_sample_is_every_statistic_of_itself(name: str) -> None:
    assert reduce_samples([0.25], name) == 0.25


@pytest.mark.parametrize("name", list(STATISTICS))
@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf], [-math.inf, 1.0]])
def test_nothing_and_not_finite_have_no_statistic(samples: list[float], name: str) -> None:
    assert reduce_samples(samples, name) is None


EVENTS = st.lists(st.tuples(st.integers(0, 5 * NS), st.integers(0, 50)), min_size=1, max_size=40)


def best_window(events: list[tuple[int, int]], window: int) -> int:
    """Most tokens in any half-open window, by trying every event as its start."""
    return max(sum(n for at, n in events if start <= at < start + window) for start, _ in events)


@given(EVENTS)
def test_the_peak_is_the_best_window_found_by_trying_all(events: list[tuple[int, int]]) -> None:
    at, amounts = [a for a, _ in events], [n for _, n in events]
    peak = peak_window_rate(at, amounts)
    if max(at) - min(at) < NS:
        assert peak is None
    else:
        assert peak == best_window(events, NS)


@given(EVENTS, st.integers(10**6, 4 * NS))
def test_a_window_of_another_length_gives_a_rate_per_second(events: list[tuple[int, int]], window: int) -> None:
    peak = peak_window_rate([a for a, _ in events], [n for _, n in events], window_ns=window)
    if peak is not None:
        assert peak == pytest.approx(best_window(events, window) * NS / window)


def test_a_steady_stream_peaks_at_its_own_rate() -> None:
    at = [i * NS // 100 for i in range(300)]
    assert peak_window_rate(at, [2] * 300) == 200.0


def test_no_events_and_less_than_a_window_have_no_peak() -> None:
    assert peak_window_rate([], []) is None
    assert peak_window_rate([0, NS - 1], [5, 5]) is None
    assert peak_window_rate([0, NS], [5, 7]) == 7.0
