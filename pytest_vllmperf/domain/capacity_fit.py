"""The fit behind a capacity search: how often requests pass a use of their service level, over the rate.

**What is fitted.** The share of requests whose use exceeds u, where x is the logarithm of the rate at which requests
really arrived in a probe (``Probe.arrived``), at several thresholds u up to 1, as a logistic tail::

    logit P(use > u | x) = logit(1 - target) + k - k(x) u + b (x - x0),   k(x) = k (1 - (x - x0) / m)

That is the tail of a queue in heavy traffic, exponential in u and the steeper the more of the capacity is spare
(Kingman 1962): k is its steepness at the capacity x0, m the spare part of the capacity, b how much more often a request
meets a queue at all. Near saturation k(x) bends so that it stays above 0. Weak priors keep k, m and b where probes say
little. Probes beyond ``HOPELESS`` only say that they are.

**Why the rate that really arrived.** n Poisson arrivals at rate r have, by chance alone, a rate of r (1 ± 1/√n): with a
steep level that is most of the noise. Given n and the time they took, arrivals are spread evenly whatever r was, so the
fit on what arrived holds for every r (Rao and Blackwell), and the share at rate r is its mean over the known, gamma
distributed, rates that n arrivals may have. The capacity is the r at which this mean is 1 - target.

**How sure.** Requests pass a threshold together, while a queue stands. The number of misses varies as that of a
compound Poisson process, more than independent ones by D = E[length²] / E[length] of the episodes: the likelihood is
divided by D, and misses / D are what the search has really seen. Two errors are added: that of so many episodes, and
that of leaving out each probe in turn (jackknife), which sees what no model does. Both come from few probes, so the
interval takes Student's quantile, with two degrees of freedom less than there are probes that are not hopeless. The
logarithm of a noisy share is too low on average by half its variance (Jensen): the capacity is set lower by as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["HOPELESS", "CapacityFit", "fit_capacity"]

HOPELESS = 0.3
"""Beyond this share of misses a probe only says that its rate is too high: a queue without end has no level."""
_CREDIBLE = 0.95
_LULL = 20
"""So many requests in a row below the threshold end an episode."""
_TAIL, _LOWEST_THRESHOLD, _THRESHOLDS = 0.9, 0.3, 5
"""The fitted tail begins where this share of the uses near the capacity is reached, and at 1 at the latest."""
_NEAR = 6
"""Probes that say where the tail begins."""
_CALM = 5.0
"""Probes with up to so many times 1 - target of misses tell the lengths of episodes; beyond, these run together."""
_PRIORS = ((math.log(5), 1.0), (math.log(0.15), 1.0), (math.log(3.5), 0.7))
"""Middle and spread of ln k, ln m and ln b."""
_AROUND = 0.5
"""Spread of ln capacity around the middle of the bracket."""
_BEND = 4.0
"""How late k(x) bends: ln(1 + exp(_BEND (1 - (x - x0) / m))), which is straight where much is spare."""
_QUANTILES = 40
_MOST_SHIFT, _MOST_ERROR = 0.03, 0.2
"""Bounds of the correction and of each of the two errors, relative: beyond, the fit has come apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityFit:
    """What all probes together say.

    Args:
        rate: The capacity, req/s.
        low, high: Its 95 % interval.
    """

    rate: float
    low: float
    high: float


def fit_capacity(
    uses: Sequence[np.ndarray], rates: Sequence[float], *, sent: float | None, missed: float, middle: float
) -> CapacityFit:
    """Fit the capacity to probes of which some held the level and others did not.

    Args:
        uses: What the counted requests of each probe took of the level, in the order of sending.
        rates: At which they really arrived, req/s.
        sent: How many independent gaps a probe's rate is the mean of; None where ``rates`` are those asked for.
        missed: The share that may miss the level, 1 - target.
        middle: A rate between those that held the level and those that did not.
    """
    return _Fit(uses, rates, sent=sent, missed=missed, middle=middle).found()


class _Fit:
    def __init__(
        self, uses: Sequence[np.ndarray], rates: Sequence[float], *, sent: float | None, missed: float, middle: float
    ) -> None:
        import numpy as np
        from scipy.special import gammaincinv

        self.missed, self.middle = missed, math.log(middle)
        self.x = np.log(np.asarray(rates, dtype=float))
        shares = np.array([float((u > 1).mean()) for u in uses])
        self.thresholds = _thresholds(uses, rates, shares)
        self.hopeless = shares >= HOPELESS
        self.spread = _spread(uses, shares, self.thresholds[0], allowed=max(_CALM * missed, float(shares.min())))
        above = np.array([[float((u > at).sum()) for at in self.thresholds] for u in uses])
        counted = np.array([float(len(u)) for u in uses])
        self.counted = counted
        self.counts = np.column_stack([counted - above[:, 0], above[:, :-1] - above[:, 1:], above[:, -1]])
        middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        self.chance = np.zeros(1) if sent is None else -np.log(gammaincinv(sent, middles) / sent)

    def found(self) -> CapacityFit:
        import numpy as np
        from scipy.special import stdtrit  # scipy.stats, with the same quantile, takes half a second to import

        every = np.ones(len(self.x))
        best = self._fitted(every, [self.middle, *(middle for middle, _ in _PRIORS)])
        at = self._capacity(best)
        step = 0.002  # steepness: d ln(share of misses) / d ln(rate) at the capacity
        steepness = max(1.0, math.log(self._share(best, at + step) / self._share(best, at - step)) / (2 * step))
        # Independent misses seen: their number divided by how far they come together.
        episodes = max(1.0, float(self.counted[~self.hopeless].sum()) * self.missed / self.spread)
        seen = min(_MOST_ERROR, 1 / math.sqrt(episodes) / steepness)
        number = len(self.x)
        left_out = [self._capacity(self._fitted(every - one, best)) - at for one in np.eye(number)]
        between = min(_MOST_ERROR, math.sqrt((number - 1) / number * sum(apart**2 for apart in left_out)))
        at -= min(_MOST_SHIFT, 0.5 / episodes / steepness)
        freedom = max(2, int((~self.hopeless).sum()) - 2)
        reach = float(stdtrit(freedom, (1 + _CREDIBLE) / 2)) * math.hypot(seen, between)
        return CapacityFit(rate=math.exp(at), low=math.exp(at - reach), high=math.exp(at + reach))

    def _tail(self, values: Sequence[float], x: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares above each threshold, by rate and threshold; and the slopes of their logits, by parameter first."""
        import numpy as np
        from scipy.special import expit

        at = values[0]
        k, m, b = (math.exp(min(max(value, -8.0), 8.0)) for value in values[1:])
        apart, use = (x - at)[:, None], thresholds[None, :]
        spare, bend = 1 - apart / m, math.log1p(math.exp(_BEND))
        left, falls = np.logaddexp(0, _BEND * spare) / bend, _BEND * expit(_BEND * spare) / bend * k / m * use
        logits = math.log(self.missed / (1 - self.missed)) + k * (1 - left * use) + b * apart
        slopes = (-(b + falls), k * (1 - left * use), -falls * apart, b * apart + 0 * use)
        return expit(np.clip(logits, -30, 30)), np.stack(slopes)

    def _cost(self, values: Sequence[float], weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative logarithm of the posterior, and its slopes; the likelihood is divided by the spread of episodes."""
        import numpy as np

        shares, slopes = self._tail(values, self.x, self.thresholds)
        bins = np.column_stack([1 - shares[:, :1], shares[:, :-1] - shares[:, 1:], shares[:, -1:]])
        bins = np.maximum(bins, 1e-12)
        told, by_share = (self.counts * np.log(bins)).sum(axis=1), np.diff(self.counts / bins, axis=1)
        capped = np.minimum(shares[:, -1], HOPELESS)
        told[self.hopeless] = self._far(capped)[self.hopeless]
        by_share[self.hopeless] = 0.0
        by_share[self.hopeless, -1] = (self.counted * (HOPELESS - capped) / (capped * (1 - capped)))[self.hopeless]
        steps = weights[:, None] * by_share * shares * (1 - shares) / self.spread
        middles, apart = np.array(((self.middle, _AROUND), *_PRIORS)).T
        off = (np.asarray(values) - middles) / apart
        cost = 0.5 * float((off**2).sum()) - float((weights * told).sum()) / self.spread
        return cost, off / apart - (slopes * steps).sum(axis=(1, 2))

    def _far(self, share: np.ndarray) -> np.ndarray:
        """Log-likelihood of ``HOPELESS`` misses or more: as of just so many, and no worse for a larger share."""
        import numpy as np

        told: np.ndarray = self.counted * (HOPELESS * np.log(share) + (1 - HOPELESS) * np.log1p(-share))
        return told

    def _fitted(self, weights: np.ndarray, start: Sequence[float]) -> list[float]:
        from scipy.optimize import minimize

        found = minimize(self._cost, start, args=(weights,), jac=True, method="BFGS", options={"gtol": 1e-3})
        return [float(value) for value in found.x]

    def _share(self, values: Sequence[float], x: float) -> float:
        """Share of misses at a rate, over what may arrive by chance."""
        import numpy as np

        return float(self._tail(values, x + self.chance, np.ones(1))[0].mean())

    def _capacity(self, values: Sequence[float]) -> float:
        """Logarithm of the rate at which 1 - target miss the level; the share grows with the rate."""
        low, high = values[0] - 1.0, values[0] + 1.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (low, middle) if self._share(values, middle) > self.missed else (middle, high)
        return (low + high) / 2


def _thresholds(uses: Sequence[np.ndarray], rates: Sequence[float], shares: np.ndarray) -> np.ndarray:
    """Where the fitted tail is cut into bins; the last threshold is 1."""
    import numpy as np

    near = [place for place, share in enumerate(shares) if share < HOPELESS] or list(range(len(uses)))
    closest = sorted(near, key=lambda place: rates[place])[-_NEAR:]
    reached = float(np.quantile(np.concatenate([uses[place] for place in closest]), _TAIL, method="lower"))
    lowest = min(1.0, max(_LOWEST_THRESHOLD, reached))
    return np.linspace(lowest, 1.0, _THRESHOLDS) if lowest < 1 else np.ones(1)


def _spread(uses: Sequence[np.ndarray], shares: np.ndarray, threshold: float, *, allowed: float) -> float:
    """E[length²] / E[length] of the episodes, by the probes near the capacity.

    One spread for all probes: weighing each by its own would believe the lucky ones more.
    """
    lengths = [n for u, share in zip(uses, shares, strict=True) if share <= allowed for n in episodes(u, threshold)]
    total = sum(lengths)
    return max(1.0, sum(n * n for n in lengths) / total) if total else 1.0


def episodes(uses: np.ndarray, threshold: float) -> list[int]:
    """Requests above ``threshold`` in each stretch of them, ended by ``_LULL`` below it."""
    import numpy as np

    places = np.flatnonzero(uses > threshold)
    ends = np.flatnonzero(np.diff(places) > _LULL)
    return [int(n) for n in np.diff([-1, *ends, len(places) - 1])] if len(places) else []
