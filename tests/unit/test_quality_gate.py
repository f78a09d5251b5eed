import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm

from pytest_vllmperf.domain.quality_gate import QUESTION_LOOKS, AnswersVerdict, judge_answers, judge_floor
from pytest_vllmperf.domain.thresholds import Outcome
from pytest_vllmperf.errors import ConfigError


@given(st.integers(1, 400), st.data(), st.floats(0, 1))
def test_the_floor_is_judged_by_clopper_and_pearsons_interval(n: int, data: st.DataObject, floor: float) -> None:
    right = data.draw(st.integers(0, n))
    verdict = judge_floor(right, n, floor)
    low = 0.0 if right == 0 else float(beta.ppf(0.05, right, n - right + 1))
    high = 1.0 if right == n else float(beta.ppf(0.95, right + 1, n - right))
    assert verdict.low == pytest.approx(low, abs=1e-7)
    assert verdict.high == pytest.approx(high, abs=1e-7)
    if min(abs(low - floor), abs(high - floor)) > 1e-6:
        expected = Outcome.PASS if low >= floor else Outcome.FAIL if high < floor else Outcome.INCONCLUSIVE
        assert verdict.outcome is expected


@pytest.mark.parametrize("floor", [0.5, 0.77, 0.9])
def test_a_model_at_its_floor_passes_at_most_one_time_in_twenty(floor: float) -> None:
    rights = range(31)
    passing = sum(binom.pmf(k, 30, floor) for k in rights if judge_floor(k, 30, floor - 1e-9).outcome is Outcome.PASS)
    failing = sum(binom.pmf(k, 30, floor) for k in rights if judge_floor(k, 30, floor).outcome is Outcome.FAIL)
    assert 0 < passing <= 0.05
    assert 0 < failing <= 0.05


def test_thirty_questions_rarely_decide_and_say_so() -> None:
    verdict = judge_floor(24, 30, 0.77)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason == (
        "80.0% [64.3%, 90.9%] of 30 questions does not tell on which side of 77.0% the model is; ask more questions"
    )


def test_no_question_is_invalid_whatever_the_floor() -> None:
    verdict = judge_floor(0, 0, 0.0)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == "no question was answered"


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan, 80])
def test_a_floor_that_is_no_share_is_refused(floor: float) -> None:
    with pytest.raises(ConfigError, match="must be a share of right answers from 0 to 1"):
        judge_floor(1, 2, floor)


@pytest.mark.parametrize(("right", "questions"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(right: int, questions: int) -> None:
    with pytest.raises(ConfigError, match="are impossible"):
        judge_floor(right, questions, 0.5)


def answers(n: int, *, lost: int, gained: int) -> tuple[list[bool], list[bool]]:
    """Answers of two engines of which ``lost`` are right only in the first, ``gained`` only in the second."""
    both = [True] * (n - lost - gained)
    return [True] * lost + [False] * gained + both, [False] * lost + [True] * gained + both


def judged(n: int, *, lost: int, gained: int, tolerance: float = 0.03) -> AnswersVerdict:
    return judge_answers(*answers(n, lost=lost, gained=gained), tolerance=tolerance)


@given(st.sampled_from(QUESTION_LOOKS.at), st.data())
def test_answers_are_judged_by_exact_mcnemar_and_the_bound_of_the_drop(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n // 5))
    gained = data.draw(st.integers(0, n // 5))
    verdict = judged(n, lost=lost, gained=gained)
    share = {30: 0.1, 120: 0.2, 400: 0.3, 1319: 0.4}[n]
    exact = float(binom.sf(lost - 1, lost + gained, 0.5))
    drop = (lost - gained) / n
    most = drop + norm.ppf(1 - 0.02 * share) * math.sqrt(((lost + gained + 2) / n - drop**2) / n)
    assert verdict.p_value == pytest.approx(exact, rel=1e-6)
    assert verdict.low == pytest.approx(-most, rel=1e-6)
    if abs(most - 0.03) > 1e-9:
        failed = exact < 0.01 * share
        expected = Outcome.FAIL if failed else Outcome.PASS if most < 0.03 else Outcome.INCONCLUSIVE
        assert verdict.outcome is expected


@given(st.integers(0, 100))
def test_a_candidate_that_only_gains_never_fails(gained: int) -> None:
    assert judged(400, lost=0, gained=gained).outcome is not Outcome.FAIL


def test_equal_answers_pass_once_there_are_enough() -> None:
    assert judged(30, lost=0, gained=0).outcome is Outcome.INCONCLUSIVE
    assert judged(400, lost=0, gained=0).outcome is Outcome.PASS
    assert judged(400, lost=0, gained=0).p_value == 1.0


def test_a_clear_drop_fails_and_says_how_much() -> None:
    verdict = judged(400, lost=40, gained=8)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.change == pytest.approx(-0.08)
    assert verdict.reason.startswith("-8.0 points on 400 questions (40 lost, 8 gained, p = ")
    assert verdict.alpha_spent == pytest.approx(0.006)


def test_nothing_is_decided_between_looks() -> None:
    verdict = judged(200, lost=100, gained=0)
    assert (verdict.outcome, verdict.next_look) == (Outcome.INCONCLUSIVE, 400)
    assert verdict.reason.endswith("no look; the next is at 400")


def test_fewer_questions_have_looks_of_their_own() -> None:
    looks = QUESTION_LOOKS.within(200)
    verdict = judge_answers(*answers(200, lost=100, gained=0), tolerance=0.03, looks=looks)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.alpha_spent == pytest.approx(0.01)
    undecided = judge_answers(*answers(200, lost=10, gained=8), tolerance=0.03, looks=looks)
    assert (undecided.outcome, undecided.next_look) == (Outcome.INCONCLUSIVE, None)
    assert undecided.reason.endswith("all 200 are asked")


def test_missing_answers_and_unequal_lists_are_invalid() -> None:
    assert judge_answers([], [], tolerance=0.03).outcome is Outcome.INVALID
    unequal = judge_answers([True] * 30, [True] * 29, tolerance=0.03)
    assert unequal.outcome is Outcome.INVALID
    assert unequal.reason == "30 baseline and 29 candidate answers: every question needs one of each"
    missing = judge_answers([True] * 30, [True] * 29 + [None], tolerance=0.03)
    assert missing.outcome is Outcome.INVALID
    assert missing.reason == "1 of 30 questions lack an answer"


@pytest.mark.parametrize("tolerance", [0.0, -0.03, 1.0, 3.0, math.nan])
def test_an_impossible_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"must be a difference of shares above 0 and below 1, such as 0\.03"):
        judge_answers([True], [True], tolerance=tolerance)


def test_engines_that_answer_alike_hardly_ever_fail() -> None:
    rng = np.random.default_rng(2)

    def outcome(lost: float, gained: float) -> Outcome:
        kind = rng.choice(3, size=1319, p=[lost, gained, 1 - lost - gained])
        first, second = (kind != 1).tolist(), (kind != 0).tolist()
        n: int | None = 30
        while n is not None:
            verdict = judge_answers(first[:n], second[:n], tolerance=0.03)
            n = verdict.next_look
        return verdict.outcome

    same, worse = [outcome(0.04, 0.04) for _ in range(150)], [outcome(0.055, 0.025) for _ in range(150)]
    assert same.count(Outcome.FAIL) <= 4
    assert worse.count(Outcome.PASS) <= 9
    assert worse.count(Outcome.FAIL) >= 105
