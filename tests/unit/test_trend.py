import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from pytest_vllmperf.domain.metrics import Better
from pytest_vllmperf.domain.trend import MINIMUM_NIGHTS, scan_trend

QUIET = np.exp(np.random.default_rng(5).normal(0, 0.02, 40)).tolist()


def stepped(nights: int, ratio: float, last: int) -> list[float]:
    return [v * (ratio if i >= nights - last else 1.0) for i, v in enumerate(QUIET[:nights])]


@pytest.mark.parametrize("last", [3, 5, 8])
def test_a_step_to_a_worse_level_is_found_with_its_place_and_size(last: int) -> None:
    nights = stepped(30, 1.2, last)
    step = scan_trend(nights, better=Better.LOWER).step
    assert step is not None
    assert step.since == 30 - last
    assert step.change == pytest.approx(0.2, abs=0.03)
    assert step.after / step.before == pytest.approx(1 + step.change)


def test_a_better_level_is_no_alarm_and_the_direction_is_the_metrics() -> None:
    faster = stepped(30, 1 / 1.2, 5)
    assert scan_trend(faster, better=Better.LOWER).step is None
    found = scan_trend(faster, better=Better.HIGHER).step
    assert found is not None
    assert found.change == pytest.approx(1 / 1.2 - 1, abs=0.03)
    assert scan_trend(stepped(30, 1.2, 5), better=Better.NEITHER).step is None


def test_a_level_series_raises_no_alarm() -> None:
    finding = scan_trend(QUIET, better=Better.LOWER)
    assert finding.step is None
    assert finding.p_value is not None
    assert finding.reason.startswith("no step to a worse level in 40 nights")


def test_one_night_with_a_spike_is_no_step() -> None:
    assert scan_trend([*QUIET[:29], 9.0], better=Better.LOWER).step is None


@settings(max_examples=25)
@given(st.lists(st.floats(0.5, 2.0), min_size=MINIMUM_NIGHTS, max_size=20))
def test_only_ranks_count(nights: list[float]) -> None:
    grown = [v**3 for v in nights]
    if len({math.log(v) for v in grown}) == len({math.log(v) for v in nights}):
        assert scan_trend(nights, better=Better.LOWER).p_value == scan_trend(grown, better=Better.LOWER).p_value


def test_the_p_value_is_that_of_the_scan_done_by_hand() -> None:
    nights, rng = stepped(14, 1.03, 4), np.random.default_rng(99)

    def statistic(scores: np.ndarray) -> float:
        total = len(scores)
        return max((scores[-a:].mean() - scores[:-a].mean()) / math.sqrt(1 / a + 1 / (total - a)) for a in range(2, 11))

    scores = norm.ppf((rankdata(nights) - 0.5) / len(nights))
    null = np.array([statistic(rng.permutation(scores)) for _ in range(2000)])
    by_hand = (null >= statistic(scores) - 1e-12).mean()
    p_value = scan_trend(nights, better=Better.LOWER).p_value
    assert p_value == pytest.approx(by_hand, abs=0.04)
    assert 0.001 < by_hand < 0.9


def test_the_night_of_a_step_is_found_by_its_size_and_a_spike_before_does_not_move_it() -> None:
    nights = stepped(30, 1.1, 5)
    nights[20] = 1.5
    step = scan_trend(nights, better=Better.LOWER).step
    assert step is not None
    assert step.since == 25


def test_missing_nights_are_left_out_counted_and_keep_the_place() -> None:
    nights: list[float | None] = list(stepped(30, 1.2, 5))
    nights[3], nights[10], nights[20] = None, math.nan, 0.0
    finding = scan_trend(nights, better=Better.LOWER)
    assert (finding.n, finding.left_out) == (27, 3)
    assert finding.step is not None
    assert finding.step.since == 25


@pytest.mark.parametrize("count", [0, 1, 11])
def test_too_few_nights_are_not_scanned_and_say_so(count: int) -> None:
    finding = scan_trend(stepped(count, 3.0, 3), better=Better.LOWER)
    assert finding.step is finding.p_value is None
    assert finding.reason == f"{count} usable nights since the last reset; a scan needs 12"


def test_an_answered_step_is_not_found_again_and_a_later_one_is() -> None:
    nights = stepped(30, 1.2, 5)
    assert scan_trend(nights, better=Better.LOWER, answered=30).reason == "fewer than 2 nights since the last alarm"
    again = scan_trend([*nights, 1.21, 1.19, 1.2], better=Better.LOWER, answered=30)
    assert again.step is None or again.step.since >= 30
    later = scan_trend([*nights, 1.5, 1.5, 1.5, 1.5], better=Better.LOWER, answered=30)
    assert later.step is not None
    assert later.step.since == 30


def test_equal_nights_have_no_step() -> None:
    finding = scan_trend([3.0] * 20, better=Better.LOWER)
    assert finding.step is None
    assert finding.p_value == 1.0
