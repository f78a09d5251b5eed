"""Where the next run of an unchanged engine should fall, from stored runs: for display and suspicion, never a FAIL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.bounds import unusable
from pytest_vllmperf.domain.metrics import Better

__all__ = ["MINIMUM_RUNS", "HistoryBand", "HistoryFinding", "history_band", "judge_history"]

MINIMUM_RUNS = 10
"""Stored runs below which their spread says too little."""

_CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryBand:
    """Prediction interval of the next run, in the metric's base unit.

    Args:
        low: Below it, one-sided, with the probability left over by ``confidence``.
        center: Geometric mean of the stored runs.
        high: Above it, likewise.
        n: Stored runs.
        confidence: Of each side alone.
    """

    low: float
    center: float
    high: float
    n: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFinding:
    """What history says about one run.

    There is no outcome on purpose: a shift of the machine alone leaves the band, so only the
    relative gate may fail, or pass, a run.

    Args:
        suspicious: True when the run is worse than the band.
        change: Run / center − 1; None without a band.
        band: None with too few stored runs.
        reason: One sentence.
    """

    suspicious: bool
    change: float | None
    band: HistoryBand | None
    reason: str


def history_band(stored: Sequence[float], *, confidence: float = _CONFIDENCE) -> HistoryBand | None:
    """Student's t prediction interval of the logarithms: mean ± t · s · √(1 + 1/n).

    None with fewer than :data:`MINIMUM_RUNS` runs, or with any that is missing or not above 0.
    """
    n = len(stored)
    if n < MINIMUM_RUNS or unusable(stored, what="run", positive=True) is not None:
        return None
    import numpy as np
    from scipy.special import stdtrit

    logs = np.log(np.asarray(stored, dtype=float))
    center, spread = float(logs.mean()), float(logs.std(ddof=1)) * math.sqrt(1 + 1 / n)
    reach = float(stdtrit(n - 1, confidence)) * spread
    return HistoryBand(
        low=math.exp(center - reach),
        center=math.exp(center),
        high=math.exp(center + reach),
        n=n,
        confidence=confidence,
    )


def judge_history(
    stored: Sequence[float], value: float | None, *, better: Better, confidence: float = _CONFIDENCE
) -> HistoryFinding:
    """Compare one run with comparable stored ones. A run without a value is suspicious."""
    if value is None or not math.isfinite(value):
        return HistoryFinding(suspicious=True, change=None, band=None, reason="this run has no value")
    band = history_band(stored, confidence=confidence)
    if band is None:
        problem = unusable(stored, what="stored run", positive=True) if stored else None
        reason = problem or f"{len(stored)} comparable runs are stored; a band needs {MINIMUM_RUNS}"
        return HistoryFinding(suspicious=False, change=None, band=None, reason=reason)
    above, below = value > band.high, value < band.low
    worse = {Better.LOWER: above, Better.HIGHER: below, Better.NEITHER: above or below}[better]
    place = "above" if above else "below" if below else "within"
    told = f"{place} what {band.n} stored runs predict"
    if worse:
        told += ": suspicious, to be confirmed by the relative gate"
    return HistoryFinding(suspicious=worse, change=value / band.center - 1, band=band, reason=told)
