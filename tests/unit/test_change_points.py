"""Changes of level: found where they are, in both directions, and seldom where there are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllmperf.domain.change_points import ALPHA, change_points


def noisy(*levels, spread=0.01, seed=0):
    """``(level, how often)`` after each other, with some noise."""
    random = np.random.default_rng(seed)
    return [level * random.normal(1, spread) for level, count in levels for _ in range(count)]


@pytest.mark.parametrize("step", [1.1, 0.9])
@pytest.mark.parametrize("at", [4, 12, 20, 36])
def test_a_step_is_found_where_it_is(step, at):
    (found,) = change_points(noisy((100.0, at), (100.0 * step, 40 - at)))
    assert found.at == at
    assert found.change == pytest.approx(step - 1, abs=0.03)
    assert found.before == pytest.approx(100, rel=0.02)


def test_several_steps_are_found_and_measured_between_each_other():
    found = change_points(noisy((10.0, 20), (12.0, 15), (9.0, 25)))
    assert [point.at for point in found] == [20, 35]
    assert found[0].after == found[1].before == pytest.approx(12, rel=0.02)
    assert found[1].change == pytest.approx(-0.25, abs=0.02)


def test_a_spike_is_no_change_and_a_short_or_flat_series_has_none():
    values = noisy((10.0, 40))
    values[20] = 1e6
    assert change_points(values) == ()
    assert change_points(noisy((1.0, 5), (9.0, 6))) == ()
    assert change_points([3.0] * 50) == ()
    assert change_points([]) == ()


def test_noise_is_split_as_seldom_as_promised():
    random = np.random.default_rng(5)
    runs = 400
    split = sum(bool(change_points(random.normal(10, 1, 40).tolist())) for _ in range(runs))
    assert split <= 3 + 3 * runs * ALPHA  # far in the tail of a binomial with that rate


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e9), max_size=60))
def test_points_are_in_order_and_inside(values):
    found = [point.at for point in change_points(values)]
    assert found == sorted(set(found))
    assert all(2 <= at <= len(values) - 2 for at in found)


def test_a_level_of_zero_has_no_ratio():
    (found,) = change_points([0.0] * 20 + [5.0] * 20)
    assert (found.at, found.before, found.after, found.change) == (20, 0.0, 5.0, None)
