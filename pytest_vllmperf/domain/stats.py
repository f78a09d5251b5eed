"""Samples and the numbers drawn from them. Missing is None, never zero and never NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_vllmperf.domain.metrics import STATISTICS

__all__ = ["peak_window_rate", "reduce_samples", "relative_half_width"]


def reduce_samples(samples: Sequence[float], statistic: str) -> float | None:
    """One statistic of ``samples``; None for no samples or for any that is not finite.

    Percentiles interpolate linearly between order statistics (numpy's default, the one
    ``vllm bench serve`` prints).
    """
    if not samples or not all(math.isfinite(s) for s in samples):
        return None
    import numpy as np

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
    import numpy as np

    order = np.argsort(np.asarray(at_ns, dtype=np.int64), kind="stable")
    times = np.asarray(at_ns, dtype=np.int64)[order]
    if times[-1] - times[0] < window_ns:
        return None
    cumulative = np.concatenate([[0], np.cumsum(np.asarray(amounts, dtype=np.float64)[order])])
    ends = np.searchsorted(times, times + window_ns, side="left")
    best = np.max(cumulative[ends] - cumulative[np.arange(len(times))])
    return float(best) * 1e9 / window_ns


def relative_half_width(samples: Sequence[float], *, confidence: float = 0.95) -> float | None:
    """Half the width of the interval of the mean, as a share of the mean; None where it cannot be told.

    ``samples`` stand in the order of time. What follows one another in a loaded server is alike: the count is
    reduced to n·(1 - ρ)/(1 + ρ) with the lag-1 autocorrelation ρ, as for an AR(1) process
    (Zwiers and von Storch 1995), and ρ below 0 is taken as 0.
    """
    import numpy as np
    from scipy.special import stdtrit

    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 3 or not np.all(np.isfinite(values)) or values.mean() <= 0:
        return None
    centred = values - values.mean()
    spread = float(np.dot(centred, centred))
    if spread == 0.0:
        return 0.0
    correlation = max(0.0, float(np.dot(centred[:-1], centred[1:])) / spread)
    independent = max(2.0, len(values) * (1 - correlation) / (1 + correlation))
    error = math.sqrt(spread / (len(values) - 1) / independent)
    return float(stdtrit(independent - 1, 0.5 + confidence / 2)) * error / float(values.mean())
