"""The relative gate: candidate against baseline, launched in pairs in one job, judged at fixed looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytest_vllmperf.domain.bounds import MeanBounds, mean_bounds, unusable
from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.domain.metrics import Better
from pytest_vllmperf.domain.thresholds import Outcome
from pytest_vllmperf.domain.units import format_quantity
from pytest_vllmperf.errors import ConfigError

__all__ = [
    "FALSE_FAIL",
    "FALSE_PASS",
    "PAIR_LOOKS",
    "PairedVerdict",
    "Side",
    "abba_order",
    "confirm",
    "judge_pairs",
    "signed_percent",
]

Side = Literal["baseline", "candidate"]

PAIR_LOOKS = Looks(at=(4, 6, 8, 10))
"""Pairs after which the gate judges."""
FALSE_FAIL = 0.02
"""Probability of FAIL without a difference, over all looks together."""
FALSE_PASS = 0.05
"""Probability of PASS although the candidate is worse by the tolerance, over all looks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedVerdict:
    """One judgement of a candidate against a baseline.

    Args:
        outcome: FAIL: the candidate is worse. PASS: it is not worse by as much as the tolerance.
        change: Candidate / baseline − 1 (geometric mean over pairs); negative for a fall.
        low: Lower bound of ``change``.
        high: Upper bound of ``change``.
        confidence: That the true change lies between the bounds, at this look alone.
        n: Pairs.
        next_look: Pairs to have before judging again; None when this verdict is final.
        alpha_spent: Error of a false FAIL spent so far.
        reason: One sentence.
    """

    outcome: Outcome
    change: float | None
    low: float | None
    high: float | None
    confidence: float | None
    n: int
    next_look: int | None
    alpha_spent: float
    reason: str


def abba_order(pairs: int, seed: int) -> tuple[tuple[Side, Side], ...]:
    """The order of launches: who comes first changes from pair to pair, so that a steady drift cancels.

    Each two pairs are ABBA or BAAB, drawn by ``seed``, so that no periodic disturbance can side with one.
    """
    import numpy as np

    first: tuple[Side, Side] = ("baseline", "candidate")
    second: tuple[Side, Side] = ("candidate", "baseline")
    turned = np.random.default_rng(seed).integers(0, 2, size=(pairs + 1) // 2)
    return tuple((first, second)[(pair + int(turned[pair // 2])) % 2] for pair in range(pairs))


def judge_pairs(
    baseline: Sequence[float | None],
    candidate: Sequence[float | None],
    *,
    better: Better,
    tolerance: float,
    looks: Looks = PAIR_LOOKS,
    alpha: float = FALSE_FAIL,
    beta: float = FALSE_PASS,
) -> PairedVerdict:
    """Judge the pairs launched so far.

    d = log(candidate / baseline) of each pair, turned so that positive is worse. With Student's t bounds
    L (error α_k) and U (error β_k) of its mean at look k: PASS if U < log(1 + tolerance), else FAIL if
    L > 0, else more pairs. α_k and β_k are the look's shares of ``alpha`` and ``beta``, so both
    errors hold over all looks together for normally distributed d, whatever its variance.

    Args:
        baseline: The metric of each baseline launch, in the order of pairs.
        candidate: The metric of each candidate launch, likewise.
        better: Direction of an improvement.
        tolerance: Ratio by which the candidate may be worse: for lower-is-better metrics of candidate to
            baseline, for higher-is-better of baseline to candidate.
        looks: Pairs after which to judge. Between looks the outcome is INCONCLUSIVE.
        alpha: Probability of a false FAIL.
        beta: Probability of a false PASS at the tolerance.

    Raises:
        ConfigError: ``tolerance`` is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"tolerance {tolerance!r} must be a ratio of 0 or more, such as 0.05 for 5 %")
    n = min(len(baseline), len(candidate))
    broken = _broken(baseline, candidate)
    if broken is not None:
        return _without_interval(Outcome.INVALID, n, broken, looks=looks, alpha=alpha)
    sign = -1.0 if better is Better.HIGHER else 1.0
    worse = [sign * math.log(c / b) for b, c in zip(baseline, candidate, strict=True) if b is not None and c]
    bounds = mean_bounds(worse, error_low=alpha * looks.share(n), error_high=beta * looks.share(n))
    if bounds is None:
        return _without_interval(Outcome.INCONCLUSIVE, n, "one pair has no interval", looks=looks, alpha=alpha)
    outcome, told = _decided(bounds, n, better, tolerance, looks)
    change, low, high = (math.expm1(sign * x) + 0.0 for x in (bounds.mean, bounds.low, bounds.high))  # no -0.0
    low, high = min(low, high), max(low, high)
    interval = f"{signed_percent(change)} [{signed_percent(low)}, {signed_percent(high)}] over {n} pairs"
    return PairedVerdict(
        outcome=outcome,
        change=change,
        low=low,
        high=high,
        confidence=1 - (alpha + beta) * looks.share(n),
        n=n,
        next_look=looks.following(n) if outcome is Outcome.INCONCLUSIVE else None,
        alpha_spent=alpha * looks.spent(n),
        reason=f"{interval}: {told}",
    )


def confirm(first: PairedVerdict, repeated: PairedVerdict) -> PairedVerdict:
    """What stands after a FAIL was repeated once with fresh launches: the repetition's outcome.

    With many metrics some false FAIL becomes likely; that two independent gates both fail by chance is not.

    Raises:
        ConfigError: ``first`` is no FAIL: repeating anything else would be asking until the answer pleases.
    """
    if first.outcome is not Outcome.FAIL:
        raise ConfigError(f"only a FAIL is repeated to confirm it, not {first.outcome}")
    told = "confirmed" if repeated.outcome is Outcome.FAIL else "not confirmed"
    return replace(repeated, reason=f"FAIL {told} by fresh launches: {repeated.reason} (first: {first.reason})")


def signed_percent(ratio: float) -> str:
    """A change for people: ``+5.2 %``, ``-29 %``."""
    return ("+" if ratio > 0 else "") + format_quantity(ratio, unit="ratio", digits=2)


def _broken(baseline: Sequence[float | None], candidate: Sequence[float | None]) -> str | None:
    if len(baseline) != len(candidate):
        return f"{len(baseline)} baseline and {len(candidate)} candidate launches: every pair needs one of each"
    return unusable(baseline, what="baseline launch", positive=True) or unusable(
        candidate, what="candidate launch", positive=True
    )


def _without_interval(outcome: Outcome, n: int, reason: str, *, looks: Looks, alpha: float) -> PairedVerdict:
    return PairedVerdict(
        outcome=outcome,
        change=None,
        low=None,
        high=None,
        confidence=None,
        n=n,
        next_look=looks.following(n) if outcome is Outcome.INCONCLUSIVE else None,
        alpha_spent=alpha * looks.spent(n),
        reason=reason,
    )


def _decided(bounds: MeanBounds, n: int, better: Better, tolerance: float, looks: Looks) -> tuple[Outcome, str]:
    allowed = f"the tolerance of {format_quantity(tolerance, unit='ratio')}"
    if better is Better.NEITHER:
        return Outcome.NOT_JUDGED, "neither direction is better; shown only"
    if n not in looks.at:
        following = looks.following(n)
        coming = f"the next is at {following}" if following else f"the last was at {looks.budget}"
        return Outcome.INCONCLUSIVE, f"{n} pairs are no look; {coming}"
    if bounds.high < math.log1p(tolerance):
        return Outcome.PASS, f"worse, but within {allowed}" if bounds.low > 0 else f"not worse by {allowed}"
    if bounds.low > 0:
        return Outcome.FAIL, f"worse, and not shown to be within {allowed}"
    following = looks.following(n)
    return Outcome.INCONCLUSIVE, (
        f"neither worse nor shown to be within {allowed}; "
        + (f"{following - n} more pairs needed" if following else f"the budget of {looks.budget} pairs is used up")
    )
