"""Ranks as normal scores, and how far the scores of two parts of a series lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["apart", "normal_scores"]


def normal_scores(values: Sequence[float] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Φ⁻¹((rank − ½) / T), with mean ranks for equal values: what a spike weighs no longer depends on its size."""
    import numpy as np
    from scipy.special import ndtri  # scipy.stats, with ranks as well, takes half a second to import

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return np.asarray(ndtri((ranks - 0.5) / len(values)))


def apart(scores: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(mean of the first a − mean of the rest) / √(1/a + 1/(T − a)) along the last axis, for every a of ``lengths``."""
    import numpy as np

    rest_lengths = scores.shape[-1] - lengths
    first = np.cumsum(scores, axis=-1)[..., lengths - 1]
    rest = scores.sum(axis=-1, keepdims=True) - first
    return np.asarray((first / lengths - rest / rest_lengths) / np.sqrt(1 / lengths + 1 / rest_lengths))
