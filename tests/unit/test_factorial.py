"""Designs: few launches, no effect mixed up with another."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.factorial import MOST_FACTORS, design_for, end_contrasts, launch_order, main_contrasts
from pytest_vllmperf.errors import ConfigError

EVERY = range(1, MOST_FACTORS + 1)


@pytest.mark.parametrize("factors", EVERY)
def test_a_design_begins_with_the_base_ends_with_the_candidate_and_repeats_nothing(factors):
    points = design_for(factors).points
    assert not any(points[0])
    assert all(points[-1])
    assert len(set(points)) == len(points)


@pytest.mark.parametrize("factors", EVERY)
def test_main_effects_are_found_and_clear_of_all_pairs(factors):
    """Both ends, and resolution IV: an interaction of two factors counts half for each of the two and for no other."""
    design = design_for(factors)
    weights = np.array(main_contrasts(design))
    switched_on = np.array(design.points, dtype=float)
    assert np.allclose(weights @ switched_on, np.eye(factors))
    for a, b in combinations(range(factors), 2):
        both = switched_on[:, a] * switched_on[:, b]
        share = np.zeros(factors)
        share[[a, b]] = 0.5
        assert np.allclose(weights @ both, share)


def test_designs_stay_small():
    assert [len(design_for(n).points) for n in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24)] == [
        2,
        4,
        8,
        10,
        12,
        16,
        16,
        24,
        32,
        48,
    ]


@given(st.integers(1, 24), st.integers(1, 6), st.integers(0, 2**32))
def test_every_round_launches_every_point_once(points, rounds, seed):
    order = launch_order(points, rounds, seed)
    assert [sorted(block) for block in order] == [list(range(points))] * rounds
    assert order == launch_order(points, rounds, seed)


def test_rounds_are_shuffled_on_their_own():
    assert len(set(launch_order(10, 20, 1))) == 20


def test_a_missing_end_leaves_the_other():
    design = design_for(4)
    available = [point != (True, False, False, False) for point in design.points]
    (first, *others) = main_contrasts(design, available)
    assert np.array_equal(first, end_contrasts(design, 0)[1])
    assert all(other is not None for other in others)


def test_a_factor_without_any_end_is_not_told():
    design = design_for(4)
    gone = {(True, False, False, False), (False, True, True, True)}
    assert main_contrasts(design, [point not in gone for point in design.points])[0] is None


def test_a_fraction_without_its_balance_tells_nothing_by_itself():
    design = design_for(7)
    assert main_contrasts(design, [False, *[True] * 15]) == [None] * 7


@pytest.mark.parametrize("factors", [0, 25])
def test_impossible_numbers_are_told(factors):
    with pytest.raises(ConfigError, match=f"{factors} factors cannot be told apart: from 1 to 24 can"):
        design_for(factors)
