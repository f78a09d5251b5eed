import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import t

from pytest_vllmperf.domain.bounds import mean_bounds, unusable

VALUES = st.lists(st.floats(-10, 10), min_size=2, max_size=12)
ERRORS = st.floats(0.001, 0.4)


@given(VALUES, ERRORS, ERRORS)
def test_bounds_are_students_t_bounds_by_the_formula(values: list[float], low: float, high: float) -> None:
    assume(max(values) - min(values) > 1e-9)
    bounds = mean_bounds(values, error_low=low, error_high=high)
    assert bounds is not None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    assert bounds.mean == pytest.approx(mean, abs=1e-9)
    assert bounds.low == pytest.approx(mean - t.ppf(1 - low, len(values) - 1) * error, rel=1e-6, abs=1e-9)
    assert bounds.high == pytest.approx(mean + t.ppf(1 - high, len(values) - 1) * error, rel=1e-6, abs=1e-9)


@given(st.floats(-1e6, 1e6), st.integers(2, 10), st.floats(-1e-16, 1e-16))
def test_equal_values_are_their_own_bounds_and_raise_no_warning(value: float, n: int, rounding: float) -> None:
    bounds = mean_bounds([value] * (n - 1) + [value * (1 + rounding)], error_low=0.01, error_high=0.05)
    assert bounds is not None
    assert bounds.low == bounds.mean == bounds.high == pytest.approx(value)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_bounds(values: list[float]) -> None:
    assert mean_bounds(values, error_low=0.05, error_high=0.05) is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "nothing was measured: no launch"),
        ([1.0, None], "launch 2 of 2 has no value"),
        ([math.nan, 1.0], "launch 1 of 2 gave nan"),
        ([1.0, math.inf, 1.0], "launch 2 of 3 gave inf"),
    ],
)
def test_the_first_missing_value_is_named(values: list[float | None], reason: str) -> None:
    assert unusable(values, what="launch") == reason


def test_zero_is_a_value_unless_ratios_are_wanted() -> None:
    assert unusable([0.0, 1.0], what="round") is None
    assert unusable([1.0, 0.0], what="round", positive=True) == "round 2 of 2 gave 0: a ratio needs values above 0"
