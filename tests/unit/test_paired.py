import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from pytest_vllmperf.domain.metrics import Better
from pytest_vllmperf.domain.paired import PAIR_LOOKS, PairedVerdict, abba_order, confirm, judge_pairs
from pytest_vllmperf.domain.thresholds import Outcome
from pytest_vllmperf.errors import ConfigError

LEVELS = st.floats(0.01, 1000)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Baseline and candidate at one of the looks, with anything from no to a huge difference."""
    n = draw(st.sampled_from(PAIR_LOOKS.at))
    ratio, spread = draw(st.floats(0.7, 1.4)), draw(st.floats(0.0, 0.2))
    baseline = draw(st.lists(LEVELS, min_size=n, max_size=n))
    noise = draw(st.lists(st.floats(-1, 1), min_size=n, max_size=n))
    return baseline, [b * ratio * math.exp(spread * x) for b, x in zip(baseline, noise, strict=True)]


def judged(baseline: list[float | None], candidate: list[float | None], **changed: object) -> PairedVerdict:
    return judge_pairs(baseline, candidate, **{"better": Better.LOWER, "tolerance": 0.05, **changed})  # type: ignore[arg-type]


@given(pairs(), st.floats(0.0, 0.3))
def test_the_outcome_follows_from_the_two_bounds(
    given_pairs: tuple[list[float], list[float]], tolerance: float
) -> None:
    baseline, candidate = given_pairs
    n = len(baseline)
    d = [math.log(c / b) for b, c in zip(baseline, candidate, strict=True)]
    share = {4: 0.4, 6: 0.2, 8: 0.2, 10: 0.2}[n]
    error = statistics.stdev(d) / math.sqrt(n)
    low = statistics.fmean(d) - t.ppf(1 - 0.02 * share, n - 1) * error
    high = statistics.fmean(d) + t.ppf(1 - 0.05 * share, n - 1) * error
    verdict = judged(baseline, candidate, tolerance=tolerance)
    assert verdict.low == pytest.approx(math.expm1(low), rel=1e-5, abs=1e-9)
    assert verdict.high == pytest.approx(math.expm1(high), rel=1e-5, abs=1e-9)
    if abs(high - math.log1p(tolerance)) > 1e-9 and abs(low) > 1e-9:
        expected = Outcome.PASS if high < math.log1p(tolerance) else Outcome.FAIL if low > 0 else Outcome.INCONCLUSIVE
        assert verdict.outcome is expected


@given(pairs())
def test_a_higher_is_better_metric_is_the_same_question_upside_down(
    given_pairs: tuple[list[float], list[float]],
) -> None:
    baseline, candidate = given_pairs
    lower = judged(baseline, candidate)
    higher = judged([1 / b for b in baseline], [1 / c for c in candidate], better=Better.HIGHER)
    assert lower.change is not None
    assert higher.change == pytest.approx(1 / (1 + lower.change) - 1, abs=1e-9)
    assert higher.low is not None
    assert higher.high is not None
    assert higher.low <= higher.change <= higher.high
    assert lower.high == pytest.approx(1 / (1 + higher.low) - 1, rel=1e-6, abs=1e-9)


@given(pairs(), st.lists(LEVELS, min_size=10, max_size=10))
def test_what_slows_both_of_a_pair_alike_changes_nothing(
    given_pairs: tuple[list[float], list[float]], factors: list[float]
) -> None:
    baseline, candidate = given_pairs
    before = judged(baseline, candidate)
    after = judged(
        [b * f for b, f in zip(baseline, factors, strict=False)],
        [c * f for c, f in zip(candidate, factors, strict=False)],
    )
    assert after.change == pytest.approx(before.change, abs=1e-9)
    assert after.high == pytest.approx(before.high, rel=1e-6, abs=1e-9)


@given(pairs(), st.floats(0, 0.2), st.floats(0, 0.2))
def test_a_larger_tolerance_never_takes_a_pass_back(
    given_pairs: tuple[list[float], list[float]], tolerance: float, more: float
) -> None:
    if judged(*given_pairs, tolerance=tolerance).outcome is Outcome.PASS:
        assert judged(*given_pairs, tolerance=tolerance + more).outcome is Outcome.PASS


@given(pairs(), st.data(), st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, -1.0]), st.booleans())
def test_a_value_that_is_missing_or_no_level_is_invalid(
    given_pairs: tuple[list[float], list[float]], data: st.DataObject, broken: float | None, in_candidate: bool
) -> None:
    sides: list[list[float | None]] = [list(given_pairs[0]), list(given_pairs[1])]
    sides[in_candidate][data.draw(st.integers(0, len(sides[0]) - 1))] = broken
    verdict = judged(*sides)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.change is verdict.low is verdict.high is verdict.next_look is None
    assert ("candidate" if in_candidate else "baseline") in verdict.reason


def test_no_pairs_and_half_pairs_are_invalid() -> None:
    assert judged([], []).outcome is Outcome.INVALID
    half = judged([1.0] * 4, [1.0] * 3)
    assert half.outcome is Outcome.INVALID
    assert half.reason == "4 baseline and 3 candidate launches: every pair needs one of each"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_nothing_is_decided_between_looks_however_clear_it_seems(n: int, ratio: float) -> None:
    verdict = judged([1.0] * n, [ratio] * n)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.next_look == next((look for look in PAIR_LOOKS.at if look > n), None)


@pytest.mark.parametrize(("n", "spent"), [(4, 0.008), (6, 0.012), (8, 0.016), (10, 0.02)])
def test_the_error_spent_grows_to_two_percent(n: int, spent: float) -> None:
    assert judged([1.0] * n, [1.0] * n).alpha_spent == pytest.approx(spent)


def test_equal_launches_pass_and_equally_worse_ones_fail() -> None:
    assert judged([7.0] * 4, [7.0] * 4).outcome is Outcome.PASS
    assert judged([7.0] * 4, [7.0] * 4).reason == "0 % [0 %, 0 %] over 4 pairs: not worse by the tolerance of 5 %"
    assert (
        judged([7.0] * 4, [7.14] * 4).reason == "+2 % [+2 %, +2 %] over 4 pairs: worse, but within the tolerance of 5 %"
    )
    worse = judged([100.0] * 4, [70.0] * 4, better=Better.HIGHER)
    assert worse.outcome is Outcome.FAIL
    assert worse.reason == ("-30 % [-30 %, -30 %] over 4 pairs: worse, and not shown to be within the tolerance of 5 %")


NOISY = [1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.15, 0.9, 1.05, 1.0]


def test_noise_asks_for_more_pairs_until_the_budget_is_used_up() -> None:
    first = judged([1.0] * 4, NOISY[:4])
    assert (first.outcome, first.next_look) == (Outcome.INCONCLUSIVE, 6)
    assert first.reason.endswith("neither worse nor shown to be within the tolerance of 5 %; 2 more pairs needed")
    last = judged([1.0] * 10, NOISY)
    assert (last.outcome, last.next_look) == (Outcome.INCONCLUSIVE, None)
    assert last.reason.endswith("the budget of 10 pairs is used up")
    assert last.confidence == pytest.approx(1 - 0.07 * 0.2)


def test_a_smaller_budget_spends_all_of_its_error_by_its_last_look() -> None:
    verdict = judged([1.0] * 6, NOISY[:6], looks=PAIR_LOOKS.within(6))
    assert verdict.next_look is None
    assert verdict.alpha_spent == pytest.approx(0.02)


def test_a_metric_without_a_better_direction_is_shown_only() -> None:
    verdict = judged([1.0] * 4, [2.0] * 4, better=Better.NEITHER)
    assert verdict.outcome is Outcome.NOT_JUDGED
    assert verdict.change == pytest.approx(1.0)


@pytest.mark.parametrize("tolerance", [-0.01, math.nan, math.inf])
def test_an_impossible_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"must be a ratio of 0 or more, such as 0\.05 for 5 %"):
        judged([1.0] * 4, [1.0] * 4, tolerance=tolerance)


def test_only_a_fail_is_confirmed_and_the_repetition_decides() -> None:
    fail, passed = judged([1.0] * 4, [2.0] * 4), judged([1.0] * 4, [1.0] * 4)
    assert confirm(fail, fail).outcome is Outcome.FAIL
    assert confirm(fail, fail).reason.startswith("FAIL confirmed by fresh launches: +100 %")
    assert confirm(fail, passed).outcome is Outcome.PASS
    assert confirm(fail, passed).reason.startswith("FAIL not confirmed by fresh launches: 0 %")
    assert "(first: +100 %" in confirm(fail, passed).reason
    with pytest.raises(ConfigError, match="only a FAIL is repeated to confirm it, not PASS"):
        confirm(passed, fail)


@given(st.integers(0, 40), st.integers(0, 2**32))
def test_every_pair_launches_both_and_each_two_pairs_mirror_each_other(count: int, seed: int) -> None:
    order = abba_order(count, seed)
    assert len(order) == count
    assert all(set(pair) == {"baseline", "candidate"} for pair in order)
    for first, second in zip(order[0::2], order[1::2], strict=False):
        assert first == second[::-1]


@given(st.sampled_from(PAIR_LOOKS.at), st.integers(0, 2**32), st.floats(-0.05, 0.05))
def test_a_steady_drift_cancels_at_every_look(count: int, seed: int, drift: float) -> None:
    log: dict[str, list[float]] = {"baseline": [], "candidate": []}
    for place, side in enumerate(side for pair in abba_order(count, seed) for side in pair):
        log[side].append(math.exp(drift * place))
    change = judged(list(log["baseline"]), list(log["candidate"])).change
    assert change == pytest.approx(0.0, abs=1e-9)


def test_the_seed_decides_who_comes_first() -> None:
    assert abba_order(10, 3) == abba_order(10, 3)
    assert {abba_order(2, seed)[0][0] for seed in range(20)} == {"baseline", "candidate"}


def test_unchanged_engines_hardly_ever_fail_and_worse_ones_hardly_ever_pass() -> None:
    rng = np.random.default_rng(11)

    def outcome(ratio: float) -> Outcome:
        baseline = np.exp(rng.normal(0, 0.02, 10)).tolist()
        candidate = (ratio * np.exp(rng.normal(0, 0.02, 10))).tolist()
        n: int | None = 4
        while n is not None:
            verdict = judged(baseline[:n], candidate[:n])
            n = verdict.next_look
        return verdict.outcome

    same, worse = [outcome(1.0) for _ in range(200)], [outcome(1.05) for _ in range(200)]
    assert same.count(Outcome.FAIL) <= 4
    assert same.count(Outcome.PASS) >= 180
    assert worse.count(Outcome.PASS) <= 16
    assert worse.count(Outcome.FAIL) >= 160
