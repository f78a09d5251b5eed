"""Bounds of a mean from few replicates, and whether there is anything to bound at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MeanBounds", "mean_bounds", "unusable"]

_CONSTANT = 1e-12
"""Spread, relative to the values, below which replicates count as equal: only rounding tells them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanBounds:
    """A mean with a lower and an upper one-sided bound."""

    mean: float
    low: float
    high: float


def mean_bounds(values: Sequence[float], *, error_low: float, error_high: float) -> MeanBounds | None:
    """Student's t bounds of the mean of ``values``; None for fewer than two.

    ``low`` exceeds the true mean with probability ``error_low``, ``high`` falls below it with
    ``error_high``, for independent, normally distributed values. Equal values have no spread to
    judge by: both bounds are that value.
    """
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    if max(values) - min(values) <= _CONSTANT * max(1.0, abs(mean)):
        return MeanBounds(mean=mean, low=mean, high=mean)
    from scipy.special import stdtrit  # scipy.stats, with the same quantile, takes half a second to import

    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    low, high = (float(stdtrit(len(values) - 1, 1 - error)) for error in (error_low, error_high))
    return MeanBounds(
        mean=mean, low=mean - low * sd / math.sqrt(len(values)), high=mean + high * sd / math.sqrt(len(values))
    )


def unusable(values: Sequence[float | None], *, what: str, positive: bool = False) -> str | None:
    """Why ``values`` cannot be judged; None when they can.

    Args:
        values: One for each replicate.
        what: What a replicate is, in the singular, for the sentence: ``launch``, ``round``.
        positive: True when logarithms are to be taken.
    """
    if not values:
        return f"nothing was measured: no {what}"
    for number, value in enumerate(values, start=1):
        if value is None or not math.isfinite(value):
            told = "has no value" if value is None else f"gave {value}"
            return f"{what} {number} of {len(values)} {told}"
        if positive and value <= 0:
            return f"{what} {number} of {len(values)} gave {value:g}: a ratio needs values above 0"
    return None
