"""Quality: exact binomial bounds against a floor, and candidate against baseline on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.domain.thresholds import Outcome
from pytest_vllmperf.errors import ConfigError

__all__ = [
    "FLOOR_ERROR",
    "QUESTION_LOOKS",
    "AnswersVerdict",
    "FloorVerdict",
    "judge_answers",
    "judge_floor",
]

FLOOR_ERROR = 0.05
"""Probability of a wrong PASS, and of a wrong FAIL, against a floor."""
QUESTION_LOOKS = Looks(at=(30, 120, 400, 1319), weights=(1, 2, 3, 4))
"""Questions after which paired answers are judged; 1319 is all of GSM8K's test set."""
FALSE_FAIL = 0.01
"""Probability of FAIL without a difference, over all looks together."""
FALSE_PASS = 0.02
"""Probability of PASS although the drop is the tolerance, over all looks together (nearly: it is a normal bound)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorVerdict:
    """A share of right answers against a floor.

    Args:
        outcome: PASS when the whole interval is at or above the floor, FAIL when it is below.
        share: Right answers / questions; None without questions.
        low: Exact (Clopper-Pearson) lower bound.
        high: Exact upper bound.
        n: Questions.
        reason: One sentence.
    """

    outcome: Outcome
    share: float | None
    low: float | None
    high: float | None
    n: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersVerdict:
    """A candidate's answers against the baseline's, on the same questions.

    Args:
        outcome: FAIL: the candidate answers fewer right. PASS: not fewer by as much as the tolerance.
        change: Candidate's share − baseline's share of right answers; negative for a drop.
        low: Lower bound of ``change`` at this look; the upper one is not needed for a decision.
        lost: Questions only the baseline answered right.
        gained: Questions only the candidate answered right.
        p_value: Of the exact one-sided McNemar test.
        n: Questions.
        next_look: Questions to have before judging again; None when final.
        alpha_spent: Error of a false FAIL spent so far.
        reason: One sentence.
    """

    outcome: Outcome
    change: float | None
    low: float | None
    lost: int
    gained: int
    p_value: float | None
    n: int
    next_look: int | None
    alpha_spent: float
    reason: str


def judge_floor(right: int, questions: int, floor: float, *, error: float = FLOOR_ERROR) -> FloorVerdict:
    """Judge a share of right answers by its exact binomial interval.

    Raises:
        ConfigError: ``floor`` is no share, or the counts are impossible.
    """
    if not 0 <= floor <= 1:
        raise ConfigError(f"floor {floor!r} must be a share of right answers from 0 to 1")
    if not 0 <= right <= questions:
        raise ConfigError(f"{right} right answers of {questions} questions are impossible")
    if not questions:
        reason = "no question was answered"
        return FloorVerdict(outcome=Outcome.INVALID, share=None, low=None, high=None, n=0, reason=reason)
    from scipy.stats import binomtest

    interval = binomtest(right, questions).proportion_ci(1 - 2 * error, method="exact")
    low, high = float(interval.low), float(interval.high)
    shown = f"{right / questions:.1%} [{low:.1%}, {high:.1%}] of {questions} questions"
    if low >= floor:
        outcome, reason = Outcome.PASS, f"{shown} meets ≥ {floor:.1%}"
    elif high < floor:
        outcome, reason = Outcome.FAIL, f"{shown} misses ≥ {floor:.1%}"
    else:
        outcome = Outcome.INCONCLUSIVE
        reason = f"{shown} does not tell on which side of {floor:.1%} the model is; ask more questions"
    return FloorVerdict(outcome=outcome, share=right / questions, low=low, high=high, n=questions, reason=reason)


def judge_answers(
    baseline: Sequence[bool | None],
    candidate: Sequence[bool | None],
    *,
    tolerance: float,
    looks: Looks = QUESTION_LOOKS,
    alpha: float = FALSE_FAIL,
    beta: float = FALSE_PASS,
) -> AnswersVerdict:
    """Judge the questions both engines have answered so far, in one random order for both.

    With b questions lost and c gained: FAIL when the exact McNemar test (binomial, b of b + c, one-sided)
    has p < α_k; else PASS when the upper bound of the drop, (b − c)/n + z·√(((b + c + 2)/n − ((b − c)/n)²)/n) with z of
    β_k, is below the tolerance; else more questions. α_k and β_k are the look's shares of ``alpha`` and ``beta``.

    Args:
        baseline: Whether each question was answered right; None where there is no answer.
        candidate: The same for the candidate, question by question.
        tolerance: Drop that is accepted, as a difference of shares: 0.03 is three points.
        looks: Questions after which to judge; ``QUESTION_LOOKS.within(n)`` where there are only n.
        alpha: Probability of a false FAIL.
        beta: Probability of a false PASS at the tolerance.

    Raises:
        ConfigError: ``tolerance`` is not above 0 and below 1.
    """
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance {tolerance!r} must be a difference of shares above 0 and below 1, such as 0.03")
    n = min(len(baseline), len(candidate))
    broken = _broken(baseline, candidate)
    if broken is not None:
        return AnswersVerdict(
            outcome=Outcome.INVALID,
            change=None,
            low=None,
            lost=0,
            gained=0,
            p_value=None,
            n=n,
            next_look=None,
            alpha_spent=alpha * looks.spent(n),
            reason=broken,
        )
    lost = sum(bool(b and not c) for b, c in zip(baseline, candidate, strict=True))
    gained = sum(bool(c and not b) for b, c in zip(baseline, candidate, strict=True))
    p_value, most = _p_value(lost, gained), _largest_drop(lost, gained, n, beta * looks.share(n))
    outcome, told = _decided(p_value, most, n, tolerance=tolerance, looks=looks, alpha=alpha)
    change = (gained - lost) / n
    return AnswersVerdict(
        outcome=outcome,
        change=change,
        low=-most,
        lost=lost,
        gained=gained,
        p_value=p_value,
        n=n,
        next_look=looks.following(n) if outcome is Outcome.INCONCLUSIVE else None,
        alpha_spent=alpha * looks.spent(n),
        reason=f"{100 * change:+.1f} points on {n} questions ({lost} lost, {gained} gained, p = {p_value:.2g}): {told}",
    )


def _broken(baseline: Sequence[bool | None], candidate: Sequence[bool | None]) -> str | None:
    if len(baseline) != len(candidate):
        return f"{len(baseline)} baseline and {len(candidate)} candidate answers: every question needs one of each"
    if not baseline:
        return "no question was answered"
    unanswered = sum(b is None or c is None for b, c in zip(baseline, candidate, strict=True))
    return f"{unanswered} of {len(baseline)} questions lack an answer" if unanswered else None


def _p_value(lost: int, gained: int) -> float:
    if not lost + gained:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)


def _largest_drop(lost: int, gained: int, n: int, error: float) -> float:
    """Upper bound of the drop. The 2 added to b + c keeps it from collapsing where hardly any answer differs."""
    from scipy.stats import norm

    drop = (lost - gained) / n
    return drop + float(norm.ppf(1 - error)) * math.sqrt(max(0.0, (lost + gained + 2) / n - drop**2) / n)


def _decided(
    p_value: float, most: float, n: int, *, tolerance: float, looks: Looks, alpha: float
) -> tuple[Outcome, str]:
    allowed = f"the tolerance of {100 * tolerance:.3g} points"
    following = looks.following(n)
    if n not in looks.at:
        coming = f"the next is at {following}" if following else f"the last was at {looks.budget}"
        return Outcome.INCONCLUSIVE, f"no look; {coming}"
    if p_value < alpha * looks.share(n):
        return Outcome.FAIL, "the candidate answers fewer right"
    if most < tolerance:
        return Outcome.PASS, f"a drop of {allowed} is ruled out"
    more = f"{following - n} more needed" if following else f"all {looks.budget} are asked"
    return Outcome.INCONCLUSIVE, f"neither a drop nor shown to be within {allowed}; {more}"
