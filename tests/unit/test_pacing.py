"""How often to look: the share of a core that looking takes is held, and it never stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.pacing import Allowance, Pace, Reminder


def paced(*costs_s, base_s=0.05, share=0.01, longest_s=5.0):
    pace = Pace(base_s=base_s, share=share, longest_s=longest_s)
    for cost_s in costs_s:
        pace.cost(cost_s)
    return pace


def test_cheap_looks_keep_the_period():
    assert paced(0.0001, 0.0002).period_s == 0.05


def test_a_first_look_that_imports_something_does_not_count():
    assert paced(0.9).period_s == 0.05
    assert paced(0.9, 0.0001).period_s == 0.05


def test_dear_looks_become_rare():
    assert paced(0.002, 0.002, 0.002).period_s == pytest.approx(0.2)


def test_the_dearest_look_still_happens():
    assert paced(1.0, 1.0, 1.0).period_s == 5.0


def test_looks_that_became_cheap_come_often_again():
    assert paced(0.02, 0.02, 0.0001).period_s == 0.05


@given(cost_s=st.floats(0.0, 0.04), looks=st.integers(2, 6))
def test_looks_stay_within_their_share(cost_s, looks):
    """Below ``longest_s`` × share a look's cost over its period never exceeds the share."""
    pace = paced(*[cost_s] * looks)
    assert cost_s / pace.period_s <= 0.01 * (1 + 1e-9)


def test_a_wait_is_told_once_it_is_long_and_then_rarely():
    reminder = Reminder(started_s=100.0, after_s=1.0, again_s=30.0)
    told = [tenths / 10 for tenths in range(1000, 1700) if reminder.due(tenths / 10)]
    assert told == [101.1, 131.2, 161.3]


def test_an_allowance_is_saved_up_while_nothing_is_worth_it():
    allowance = Allowance(share=0.01, now_s=0.0)
    assert allowance.covers(0.0, now_s=0.0)
    assert not allowance.covers(0.05, now_s=4.9)
    assert allowance.covers(0.05, now_s=5.1)
    allowance.spend(0.05)
    assert allowance.covers(0.0, now_s=5.1)
    assert not allowance.covers(0.01, now_s=5.1)


def test_what_was_overdrawn_is_owed():
    allowance = Allowance(share=0.01, now_s=0.0)
    allowance.spend(0.05)
    assert not allowance.covers(0.0, now_s=4.9)
    assert allowance.covers(0.0, now_s=5.1)


def test_no_more_than_so_much_is_saved_up():
    allowance = Allowance(share=0.01, now_s=0.0, most_s=0.2)
    assert allowance.covers(0.2, now_s=1000.0)
    assert not allowance.covers(0.21, now_s=1000.0)


@given(costs_s=st.lists(st.floats(0.0, 0.1), max_size=40), every_s=st.floats(0.01, 3.0))
def test_an_allowance_is_overdrawn_by_one_look_at_most(costs_s, every_s):
    allowance = Allowance(share=0.01, now_s=0.0)
    spent_s = 0.0
    for number, cost_s in enumerate(costs_s):
        if allowance.covers(0.0, now_s=number * every_s):
            allowance.spend(cost_s)
            spent_s += cost_s
        assert spent_s <= 0.01 * number * every_s + 0.1 + 1e-9
