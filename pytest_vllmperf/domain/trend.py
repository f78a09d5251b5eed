"""Nightly trend: has the series stepped to a worse level within its last nights?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.metrics import Better
from pytest_vllmperf.domain.normal_scores import apart, normal_scores

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ALPHA", "MINIMUM_NIGHTS", "Step", "TrendFinding", "scan_trend"]

MINIMUM_NIGHTS = 12
"""Nights below which no scan is made."""
ALPHA = 0.005
"""Probability that one night's scan of a level series finds a step."""

_SHORTEST, _LONGEST = 2, 10
_RESAMPLES = 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step to a worse level.

    Args:
        since: Index, in the series as given, of the first night at the new level.
        before: Level before (geometric mean), in the unit of the series.
        after: Level since.
        change: after / before − 1; negative for a fall.
    """

    since: int
    before: float
    after: float
    change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendFinding:
    """What one night's scan says.

    It is no verdict: a step asks for the relative gate between the last good subject and the current one.

    Args:
        step: None when there is none, or too little to tell.
        p_value: Of the scan; None when none was made.
        n: Nights used.
        left_out: Nights without a usable value.
        reason: One sentence.
    """

    step: Step | None
    p_value: float | None
    n: int
    left_out: int
    reason: str


def scan_trend(
    nights: Sequence[float | None], *, better: Better, answered: int = 0, alpha: float = ALPHA
) -> TrendFinding:
    """Scan the last ten nights for the start of a worse level.

    Ranks become normal scores z = Φ⁻¹((rank − ½) / T); the statistic is the largest
    (mean z of the last a − mean z of the rest) / √(1/a + 1/(T − a)) for a = 2 … 10, and its p-value comes from
    a permutation test. Only ranks count, so a night with a spike weighs no more than the worst of ordinary ones.

    Args:
        nights: One value a night, oldest first, since the window was last reset: the ratio to the control
            engine of the same night where there is one, raw values otherwise. None for a missing night.
        better: Direction of an improvement; with ``NEITHER`` nothing is worse and no scan is made.
        answered: Steps that start before this index were alarmed and answered earlier; they are not found again.
        alpha: Probability of a false alarm in one scan.
    """
    kept = [i for i, v in enumerate(nights) if v is not None and math.isfinite(v) and v > 0]
    logs = [math.log(v) for v in nights if v is not None and math.isfinite(v) and v > 0]
    total, left_out = len(kept), len(nights) - len(kept)
    longest = min(_LONGEST, sum(i >= answered for i in kept))
    refused = _refused(total, longest, better)
    if refused is not None:
        return TrendFinding(step=None, p_value=None, n=total, left_out=left_out, reason=refused)
    scores = normal_scores([-x for x in logs] if better is Better.HIGHER else logs)
    found = float(_statistic(scores, longest).max())
    null = _null_distribution(tuple(sorted(scores.tolist())), longest)
    p_value = (1 + int((null >= found - 1e-12).sum())) / (1 + len(null))
    if p_value >= alpha:
        reason = f"no step to a worse level in {total} nights (p = {p_value:.2g})"
        return TrendFinding(step=None, p_value=p_value, n=total, left_out=left_out, reason=reason)
    place = _place(logs, longest)
    length = total - place
    step = _step(logs, kept, place)
    told = f"{100 * step.change:+.1f} % since the last {length} of {total} nights (p = {p_value:.2g})"
    return TrendFinding(step=step, p_value=p_value, n=total, left_out=left_out, reason=told)


def _refused(total: int, longest: int, better: Better) -> str | None:
    if better is Better.NEITHER:
        return "neither direction is better; shown only"
    if total < MINIMUM_NIGHTS:
        return f"{total} usable nights since the last reset; a scan needs {MINIMUM_NIGHTS}"
    if longest < _SHORTEST:
        return f"fewer than {_SHORTEST} nights since the last alarm"
    return None


def _statistic(scores: np.ndarray[Any, Any], longest: int) -> np.ndarray[Any, Any]:
    """The statistic of every a = 2 … ``longest``, along a new last axis."""
    import numpy as np

    return apart(scores[..., ::-1], np.arange(_SHORTEST, longest + 1))


def _place(logs: Sequence[float], longest: int) -> int:
    """Where the new level begins: the split that leaves the least absolute deviations from both sides' medians.

    Ranks tell that there is a step and are blind to its size, so they miss its night more often.
    """

    def deviations(side: Sequence[float]) -> float:
        middle = median(side)
        return math.fsum(abs(x - middle) for x in side)

    places = range(len(logs) - _SHORTEST, len(logs) - longest - 1, -1)
    return min(places, key=lambda place: deviations(logs[:place]) + deviations(logs[place:]))


@lru_cache(maxsize=128)
def _null_distribution(scores: tuple[float, ...], longest: int) -> np.ndarray[Any, Any]:
    """Statistics of permuted scores. They depend on the ranks only, so all series of one length share them."""
    import numpy as np
    from scipy.stats import permutation_test

    result = permutation_test(
        (np.asarray(scores),),
        lambda x, axis: _statistic(np.moveaxis(x, axis, -1), longest).max(axis=-1),
        permutation_type="pairings",
        alternative="greater",
        vectorized=True,
        n_resamples=_RESAMPLES,
        random_state=np.random.default_rng(0),  # "rng" is its name from scipy 1.15 on; both are accepted there
    )
    return np.asarray(result.null_distribution)


def _step(logs: Sequence[float], kept: Sequence[int], place: int) -> Step:
    before = math.exp(math.fsum(logs[:place]) / place)
    after = math.exp(math.fsum(logs[place:]) / (len(logs) - place))
    return Step(since=kept[place], before=before, after=after, change=after / before - 1)
