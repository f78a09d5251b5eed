"""Effects from launches: exact without noise, covered with it, interactions named and no others."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllmperf.domain.effects import Effects, Observation, estimate_effects
from pytest_vllmperf.domain.factorial import design_for, launch_order


def launched(factors, main, pairs=None, *, rounds=4, sd=0.0, seed=0, without=()):
    """Launches of a design with planted effects on the logarithm, shifted from round to round."""
    rng = np.random.default_rng(seed)
    design = design_for(factors)
    found = []
    for number, order in enumerate(launch_order(len(design.points), rounds, seed)):
        block = rng.normal(0, 0.05)
        for point in order:
            on = design.points[point]
            value = sum(m for m, o in zip(main, on, strict=True) if o)
            value += sum(size for (a, b), size in (pairs or {}).items() if on[a] and on[b])
            if on not in without:
                found.append(Observation(round=number, point=point, value=value + block + rng.normal(0, sd)))
    return design, found


def effects(*args, **kwargs) -> Effects:
    found = estimate_effects(*launched(*args, **kwargs))
    assert found is not None
    return found


@settings(max_examples=60)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(0, 99))
def test_without_noise_every_effect_is_exact_and_they_add_up(main, seed):
    found = effects(len(main), main, rounds=2, seed=seed)
    assert [m.value for m in found.main if m] == pytest.approx(main, abs=1e-6)
    assert found.total.value == pytest.approx(math.fsum(main), abs=1e-6)
    assert found.remainder is not None
    assert found.remainder.value == pytest.approx(0, abs=1e-6)
    assert found.interactions == ()


@pytest.mark.parametrize("factors", [2, 3, 4, 5, 6, 8])
def test_an_interaction_is_named_measured_and_shared_by_its_two_factors(factors):
    main = [0.2, -0.1, *[0.0] * (factors - 2)]
    found = effects(factors, main, {(0, 1): 0.1}, rounds=2)
    assert [p.pair for p in found.interactions] == [(0, 1)]
    assert found.interactions[0].estimate.value == pytest.approx(0.1)
    assert [m.value for m in found.main if m] == pytest.approx([0.25, -0.05, *main[2:]], abs=1e-9)
    if factors <= 5:
        assert [end.value for end in found.at_ends[0]] == pytest.approx([0.2, 0.3])


def test_a_fraction_says_which_pairs_it_cannot_tell_from_the_named_one():
    (named,) = effects(8, [0.2, -0.1, *[0.0] * 6], {(0, 1): 0.1}, rounds=2).interactions
    assert named.pair == (0, 1)
    assert len(named.aliases) == 3
    assert all(not {0, 1} & set(pair) for pair in named.aliases)


def test_three_at_once_are_left_as_remainder():
    design, found = launched(3, [0.1, 0.1, 0.1], rounds=3)
    found = [
        Observation(round=o.round, point=o.point, value=o.value + 0.3 * all(design.points[o.point])) for o in found
    ]
    estimated = estimate_effects(design, found)
    assert estimated is not None
    assert estimated.remainder is not None
    assert estimated.total.value == pytest.approx(0.6)
    assert estimated.remainder.value != pytest.approx(0, abs=0.01)


def test_a_point_that_could_not_be_launched_costs_one_end_only():
    gone = (True, False, False, False)
    found = effects(4, [0.2, -0.1, 0.0, 0.0], without=(gone,))
    assert found.main[0] is not None
    assert found.main[0].value == pytest.approx(0.2)
    assert [len(ends) for ends in found.at_ends] == [1, 2, 2, 2]


def test_a_fraction_that_lacks_a_point_is_fitted_as_if_nothing_interacted():
    design = design_for(6)
    found = effects(6, [0.2, -0.1, 0, 0, 0, 0], rounds=2, without=(design.points[3],))
    assert [m.value for m in found.main if m] == pytest.approx([0.2, -0.1, 0, 0, 0, 0], abs=1e-9)


def test_without_base_or_candidate_or_repetition_there_is_nothing_to_tell():
    assert estimate_effects(*launched(3, [0, 0, 0], without=((False,) * 3,))) is None
    assert estimate_effects(*launched(3, [0, 0, 0], without=((True,) * 3,))) is None
    assert estimate_effects(*launched(3, [0, 0, 0], rounds=1)) is None
    assert estimate_effects(design_for(2), []) is None


def test_intervals_cover_and_interactions_are_named_under_launch_noise():
    """200 plans of five factors, launches 1.9 % apart: the figures that benchmarks/attribution.py repeats for real."""
    main, pairs = [math.log(1.2), math.log(0.9), 0.0, 0.0, 0.0], {(0, 3): math.log(1.1)}
    truth = [main[0] + pairs[0, 3] / 2, main[1], 0.0, pairs[0, 3] / 2, 0.0]
    covered = named = others = 0
    for seed in range(200):
        found = effects(5, main, pairs, sd=0.0186, seed=seed)
        covered += sum(m.low <= t <= m.high for m, t in zip(found.main, truth, strict=True) if m)
        got = {p.pair for p in found.interactions}
        named, others = named + ((0, 3) in got), others + bool(got - {(0, 3)})
    assert covered >= 0.92 * 1000
    assert named >= 190
    assert others <= 20
