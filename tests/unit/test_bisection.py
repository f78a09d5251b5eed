"""Bisect: right where steps are right, and "does not know" where they are not to be had."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.bisection import Bisection, Step
from pytest_vllmperf.errors import ConfigError


def searched(length, answer):
    bisection, steps = Bisection(length=length), {}
    while (place := bisection.next_place(steps)) is not None:
        assert place not in steps
        steps[place] = answer(place)
    return bisection.finding(steps), steps


@given(st.integers(2, 200), st.data())
def test_the_first_bad_one_is_found_in_log_many_steps(length, data):
    first_bad = data.draw(st.integers(1, length - 1))
    finding, steps = searched(length, lambda place: Step.BAD if place >= first_bad else Step.GOOD)
    assert finding.first_bad == first_bad
    assert finding.suspects == (first_bad,)
    assert len(steps) <= Bisection(length=length).most_steps


@given(st.integers(2, 40), st.data())
def test_skipped_places_make_it_doubt_but_never_wrong(length, data):
    first_bad = data.draw(st.integers(1, length - 1))
    skipped = data.draw(st.sets(st.integers(1, max(1, length - 2))))

    def answer(place):
        if place in skipped and place != length - 1:
            return Step.SKIPPED
        return Step.BAD if place >= first_bad else Step.GOOD

    finding, _ = searched(length, answer)
    assert first_bad in finding.suspects
    assert finding.first_bad in (None, first_bad)
    if finding.first_bad is None:
        assert finding.reason.startswith("does not know which of")


@pytest.mark.parametrize(("end", "told"), [(Step.GOOD, "does not differ"), (Step.SKIPPED, "could not be judged")])
def test_without_a_bad_end_nothing_is_searched(end, told):
    finding, steps = searched(16, lambda _place: end)
    assert len(steps) == 1
    assert finding.first_bad is None
    assert told in finding.reason


def test_a_row_that_is_not_in_order_is_not_believed():
    finding = Bisection(length=8).finding({7: Step.BAD, 3: Step.BAD, 5: Step.GOOD})
    assert finding.reason == "does not know: a good one follows a bad one"


def test_a_row_of_one_is_none():
    with pytest.raises(ConfigError, match="2 or more places"):
        Bisection(length=1)
