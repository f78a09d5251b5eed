"""Samples and the numbers drawn from them. Missing is None, never zero and never NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pytest_vllmperf.domain.metrics import STATISTICS

__all__ = ["peak_window_rate", "reduce_samples"]


def reduce_samples(samples: Sequence[float], statistic: str) -> float | None:
    """One statistic of ``samples``; None for no samples or for any that is not finite.

    Percentiles interpolate linearly between order statistics (numpy's default, the one
    ``vllm bench serve`` prints).
    """
    if not samples or not all(math.isfinite(s) for s in samples):
        return None
    quantile = STATISTICS[statistic].quantile
    if quantile is None:
        return float(np.mean(samples))
    return float(np.quantile(samples, quantile))


def peak_window_rate(at_ns: Sequence[int], amounts: Sequence[float], *, window_ns: int = 1_000_000_000) -> float | None:
    """Largest amount per second in any window of ``window_ns``, sliding from event to event.

    ``at_ns`` need not be sorted. None when the events span less than one window: a rate over a
    shorter time would be an extrapolation.
    """
    if not at_ns:
        return None
    order = np.argsort(np.asarray(at_ns, dtype=np.int64), kind="stable")
    times = np.asarray(at_ns, dtype=np.int64)[order]
    if times[-1] - times[0] < window_ns:
        return None
    cumulative = np.concatenate([[0], np.cumsum(np.asarray(amounts, dtype=np.float64)[order])])
    ends = np.searchsorted(times, times + window_ns, side="left")
    best = np.max(cumulative[ends] - cumulative[np.arange(len(times))])
    return float(best) * 1e9 / window_ns
