import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.errors import ConfigError

COUNTS = st.lists(st.integers(1, 200), min_size=1, max_size=8, unique=True).map(lambda n: tuple(sorted(n)))


@given(COUNTS)
def test_the_looks_spend_exactly_the_whole_error(at: tuple[int, ...]) -> None:
    looks = Looks(at=at)
    assert sum(looks.share(n) for n in at) == pytest.approx(1.0)
    assert looks.spent(at[-1]) == pytest.approx(1.0)
    assert looks.spent(at[0] - 1) == 0.0


@given(COUNTS, st.integers(1, 250))
def test_a_smaller_budget_is_its_own_last_look_and_spends_the_whole_error_too(at: tuple[int, ...], budget: int) -> None:
    looks = Looks(at=at).within(budget)
    assert looks.budget == min(budget, at[-1])
    assert set(looks.at) <= {*at, budget}
    assert looks.spent(looks.budget) == pytest.approx(1.0)


def test_a_look_spends_in_proportion_to_the_samples_it_adds() -> None:
    looks = Looks(at=(4, 6, 8, 10))
    assert [looks.share(n) for n in looks.at] == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert [looks.spent(n) for n in (3, 4, 5, 6, 8, 10, 11)] == pytest.approx([0, 0.4, 0.4, 0.6, 0.8, 1, 1])


def test_weights_of_its_own_are_kept_for_a_smaller_budget() -> None:
    looks = Looks(at=(30, 120, 400, 1319), weights=(1, 2, 3, 4)).within(200)
    assert looks.at == (30, 120, 200)
    assert [looks.share(n) for n in looks.at] == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_the_next_look_follows_the_samples_and_ends_with_the_budget() -> None:
    looks = Looks(at=(4, 6, 8, 10))
    assert [looks.following(n) for n in (0, 3, 4, 5, 8, 9, 10, 12)] == [4, 4, 6, 6, 10, 10, None, None]


@pytest.mark.parametrize("at", [(), (0, 2), (3, 3), (5, 4), (-1,)])
def test_looks_that_do_not_rise_from_one_are_refused(at: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must be sample counts that rise, starting at 1 or more"):
        Looks(at=at)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, 1.0, 1.0)])
def test_every_look_needs_a_weight_above_zero(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="need one weight above 0 each"):
        Looks(at=(2, 4), weights=weights)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="looks \\(0,\\)"):
        Looks(at=(3, 5)).within(0)
