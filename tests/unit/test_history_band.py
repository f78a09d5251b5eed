import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from pytest_vllmperf.domain.history_band import MINIMUM_RUNS, history_band, judge_history
from pytest_vllmperf.domain.metrics import Better

RUNS = st.lists(st.floats(0.1, 100), min_size=MINIMUM_RUNS, max_size=30)
STORED = [1.00, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97, 1.00, 1.01, 0.99]


@given(RUNS)
def test_the_band_is_students_prediction_interval_of_the_logarithms(stored: list[float]) -> None:
    band = history_band(stored)
    assert band is not None
    logs = [math.log(v) for v in stored]
    n, center = len(logs), statistics.fmean(logs)
    reach = t.ppf(0.99, n - 1) * statistics.stdev(logs) * math.sqrt(1 + 1 / n)
    assert math.log(band.low) == pytest.approx(center - reach, rel=1e-6, abs=1e-9)
    assert math.log(band.high) == pytest.approx(center + reach, rel=1e-6, abs=1e-9)
    assert band.low <= band.center <= band.high


@pytest.mark.parametrize(
    ("better", "value", "suspicious"),
    [
        (Better.LOWER, 1.2, True),
        (Better.LOWER, 0.8, False),
        (Better.HIGHER, 0.8, True),
        (Better.HIGHER, 1.2, False),
        (Better.NEITHER, 0.8, True),
        (Better.NEITHER, 1.2, True),
        (Better.LOWER, 1.0, False),
        (Better.HIGHER, 1.0, False),
    ],
)
def test_only_worse_than_the_band_is_suspicious(better: Better, value: float, suspicious: bool) -> None:
    finding = judge_history(STORED, value, better=better)
    assert finding.suspicious is suspicious
    assert finding.change == pytest.approx(value - 1, abs=0.01)
    assert ("to be confirmed by the relative gate" in finding.reason) is suspicious


def test_fewer_runs_than_ten_have_no_band_and_raise_no_suspicion() -> None:
    finding = judge_history(STORED[:9], 5.0, better=Better.LOWER)
    assert finding.band is None
    assert not finding.suspicious
    assert finding.reason == "9 comparable runs are stored; a band needs 10"
    assert judge_history([], 5.0, better=Better.LOWER).reason == "0 comparable runs are stored; a band needs 10"


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_run_without_a_value_is_suspicious(value: float | None) -> None:
    finding = judge_history(STORED, value, better=Better.LOWER)
    assert finding.suspicious
    assert finding.reason == "this run has no value"


@pytest.mark.parametrize("broken", [0.0, math.nan, -1.0])
def test_a_stored_run_that_is_no_level_takes_the_band_away_and_is_named(broken: float) -> None:
    finding = judge_history([*STORED, broken], 1.0, better=Better.LOWER)
    assert finding.band is None
    assert finding.reason.startswith("stored run 11 of 11 gave")


def test_equal_runs_predict_just_themselves() -> None:
    band = history_band([2.0] * 10)
    assert band is not None
    assert band.low == pytest.approx(2.0)
    assert band.high == pytest.approx(2.0)
    assert not judge_history([2.0] * 10, 2.0, better=Better.LOWER).suspicious
    assert judge_history([2.0] * 10, 2.1, better=Better.LOWER).suspicious
