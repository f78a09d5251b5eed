import math
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.schedule import arrival_offsets_ns


def _open(rate: float, burstiness: float = 1.0) -> Workload:
    return Workload(name="w", input_tokens=1, output_tokens=1, requests=1, request_rate=rate, burstiness=burstiness)


def test_a_closed_loop_has_no_schedule() -> None:
    closed = Workload(name="w", input_tokens=1, output_tokens=1, requests=3, max_concurrency=1)
    assert arrival_offsets_ns(closed, count=3, seed=0) is None


def test_infinite_burstiness_gives_constant_gaps_that_never_drift() -> None:
    offsets = arrival_offsets_ns(_open(3.0, math.inf), count=3_001, seed=0)
    assert offsets is not None
    assert offsets[0] == 0
    assert offsets[3_000] == 1_000 * 10**9
    assert {b - a for a, b in pairwise(offsets)} <= {333_333_333, 333_333_334}


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness(burstiness: float) -> None:
    offsets = arrival_offsets_ns(_open(10.0, burstiness), count=20_001, seed=7)
    assert offsets is not None
    gaps = [(b - a) * 1e-9 for a, b in pairwise(offsets)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.06)
    # A gamma distribution of shape k has the coefficient of variation 1/sqrt(k).
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.08)


@given(
    rate=st.floats(0.01, 1e5),
    burstiness=st.one_of(st.floats(0.05, 50), st.just(math.inf)),
    count=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_a_schedule_starts_at_zero_never_goes_back_and_repeats_with_its_seed(
    rate: float, burstiness: float, count: int, seed: int
) -> None:
    offsets = arrival_offsets_ns(_open(rate, burstiness), count=count, seed=seed)
    assert offsets is not None
    assert len(offsets) == count
    assert offsets[0] == 0
    assert list(offsets) == sorted(offsets)
    assert offsets == arrival_offsets_ns(_open(rate, burstiness), count=count, seed=seed)


def test_another_seed_gives_other_arrivals() -> None:
    assert arrival_offsets_ns(_open(1.0), count=5, seed=1) != arrival_offsets_ns(_open(1.0), count=5, seed=2)
