"""Where a series of runs changed its level: what a picture of it marks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.normal_scores import apart, normal_scores

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ALPHA", "ChangePoint", "change_points"]

ALPHA = 0.005
"""Probability that a series without a change is split."""
_FEWEST = 12
"""Values below which nothing is split."""
_SHORTEST = 2
_AROUND = 3
_RESAMPLES = 3999


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoint:
    """A change of level.

    Args:
        at: Index of the first value at the new level.
        before: Median since the change before it, or since the beginning.
        after: Median until the next change, or until the end.
        change: after / before − 1; None where ``before`` is zero.
    """

    at: int
    before: float
    after: float
    change: float | None


def change_points(values: Sequence[float], *, alpha: float = ALPHA) -> tuple[ChangePoint, ...]:
    """Changes of level in either direction, by binary segmentation.

    Ranks within a segment become normal scores z = Φ⁻¹((rank − ½) / T). The statistic is the largest
    |mean z before − mean z after| / √(1/a + 1/(T − a)) over all splits that leave two values or more on each side; it
    is compared with that of random orders, and what it splits is split again. Only ranks count: one spike is no change.
    Of forty values it takes four or more on the shorter side.

    Args:
        values: Oldest first; finite.
        alpha: Probability that the whole series is split where it has no change.
    """
    import numpy as np

    series = np.asarray(values, dtype=np.float64)
    found = sorted(_splits(series, 0, alpha))
    for i, at in enumerate(found):
        start, end = found[i - 1] if i else 0, found[i + 1] if i + 1 < len(found) else len(series)
        found[i] = start + _placed(series[start:end], at - start)
    edges = [0, *found, len(series)]
    levels = [float(np.median(series[a:b])) for a, b in itertools.pairwise(edges) if b > a]
    return tuple(
        ChangePoint(at=at, before=before, after=after, change=after / before - 1 if before else None)
        for at, before, after in zip(found, levels, levels[1:], strict=False)
    )


def _splits(series: np.ndarray[Any, Any], offset: int, alpha: float) -> list[int]:
    if len(series) < _FEWEST or series.min() == series.max():
        return []
    scores = normal_scores(series)
    each = _statistic(scores)
    best = int(each.argmax())
    null = _null_distribution(len(series))
    if (1 + int((null >= each[best] - 1e-12).sum())) / (1 + len(null)) >= alpha:
        return []
    at = best + _SHORTEST
    return [
        offset + at,
        *_splits(series[:at], offset, alpha),
        *_splits(series[at:], offset + at, alpha),
    ]


def _placed(series: np.ndarray[Any, Any], near: int) -> int:
    """Ranks find that there is a change; where, in sizes, lets both sides deviate least from their medians."""
    import numpy as np

    def deviation(at: int) -> float:
        return float(sum(np.abs(part - np.median(part)).sum() for part in (series[:at], series[at:])))

    places = range(max(_SHORTEST, near - _AROUND), min(len(series) - _SHORTEST, near + _AROUND) + 1)
    return min(places, key=lambda at: (deviation(at), abs(at - near)))


def _statistic(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The statistic of every split, along the last axis; the first one leaves ``_SHORTEST`` values before it."""
    import numpy as np

    return np.asarray(np.abs(apart(scores, np.arange(_SHORTEST, scores.shape[-1] - _SHORTEST + 1))))


@lru_cache(maxsize=512)
def _null_distribution(total: int) -> np.ndarray[Any, Any]:
    """The statistic of ``total`` values in random order; ties are not modelled."""
    import numpy as np

    scores = normal_scores(np.arange(total, dtype=np.float64))
    random = np.random.default_rng(0)
    rows = max(1, math.floor(2e6 / total))
    parts = []
    for start in range(0, _RESAMPLES, rows):
        many = np.tile(scores, (min(rows, _RESAMPLES - start), 1))
        parts.append(_statistic(random.permuted(many, axis=1)).max(axis=-1))
    return np.concatenate(parts)
