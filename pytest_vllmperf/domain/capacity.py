"""Capacity: the largest request rate at which the service level is still met by nearly every request.

What a request took of its service level is its *use*: the largest of latency / limit over the stated limits, infinite
where it failed. The capacity is the rate at which a share of ``target`` has a use of at most 1. Requests exceed it
together, while a queue stands, in few and long episodes; mere counts of them would be far too noisy, and the interval
far too narrow. So the upper tail of the uses is fitted, over all probes at once, with the tail of a queue in heavy
traffic: exponential, and the steeper the more of the capacity is spare (Kingman 1962)::

    ln P(use > u, rate r) = ln(1 - target) + k - k(r) u + b d,   k(r) = k exp(-g d),   d = ln(r / capacity)

so that at u = 1 and d = 0 exactly 1 - target of the requests exceed it; b is how much more often a request meets a
queue at all when the rate grows. Capacity, k, g and b lie on a grid with even weights. For the interval the likelihood
is divided by the spread of the episodes' lengths (that of a compound Poisson process, E[length²] / E[length]), for the
middle by its root. Probes find a bracket
first, then go where the posterior of the capacity has its middle (stochastic bisection, after Waeber, Frazier and
Henderson 2013), until it is narrow and another probe inside it agreed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Capacity", "CapacitySearch", "CurvePoint", "Probe", "knee"]

_CREDIBLE = 0.95
_OPENING = 0.1
"""Part of a probe's requests that is not counted: its queue starts empty."""
_HOPELESS = 0.25
"""Beyond this share of misses a probe only says that its rate is too high: a queue without end has no level."""
_STEP = 1.3
"""From probe to probe, as long as one side of the bracket is missing; squared from the third such step on."""
_LULL = 20
"""So many requests in a row below the threshold end an episode."""
_TAIL = 0.85
"""The fitted tail begins where this share of the uses is reached, and at 1 at the latest."""
_LOWEST_THRESHOLD = 0.3
_BINS = 5
_PLACES = 121
_STEEPNESS, _SPARE = (1.5, 40, 14), (0.5, 25, 12)
"""Geometric grids of k and g: coarser ones bias the capacity by several per cent where the evidence is sharp."""
_BUSIER = (2.0, 6.0)
"""Values of b: with few slots a queue is there more often gradually, with many all at once (Halfin and Whitt 1981)."""
_TRUST = 0.5
"""Power of the spread for the middle: dividing by all of it, as the interval must, leaves the middle to the grid."""
_CALM = 5.0
"""Probes with up to so many times 1 - target of misses tell the spread of episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One measurement at one rate: the use each request made of the service level, in the order of sending."""

    rate: float
    uses: tuple[float, ...]

    @property
    def counted(self) -> tuple[float, ...]:
        """Without the opening, in which the queue fills."""
        return self.uses[math.ceil(_OPENING * len(self.uses)) :] or self.uses

    @property
    def missed(self) -> float:
        """Share of the counted requests that did not meet the level."""
        return sum(use > 1 for use in self.counted) / len(self.counted)

    def episodes(self, threshold: float) -> tuple[int, ...]:
        """Requests above ``threshold`` in each stretch of them."""
        lengths: list[int] = []
        lull = _LULL
        for use in self.counted:
            if use <= threshold:
                lull += 1
                continue
            if lull >= _LULL:
                lengths.append(0)
            lengths[-1] += 1
            lull = 0
        return tuple(lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Where the search ended.

    Args:
        rate: The capacity in requests per second (posterior median); None when no rate met the level, or the
            bracket has no upper side.
        low: Lower end of the 95 % interval; with ``rate`` None the largest rate known to meet the level, or 0.
        high: Upper end; ``inf`` where every rate probed met the level.
        confirmed: Whether a probe at ``rate`` or close by agreed.
        probes: All of them, in order.
        reason: One sentence.
    """

    rate: float | None
    low: float
    high: float
    confirmed: bool
    probes: tuple[Probe, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One point of the throughput-latency curve: an open loop at one rate.

    Args:
        rate: Asked for, req/s.
        requests: Sent.
        met: Share of the counted requests that met the service level.
        request_throughput, output_throughput: What came out, req/s and tok/s; None where nothing did.
        ttft_mean, tpot_mean, e2el_mean: Means in seconds, from the intended send; None where nothing completed.
    """

    rate: float
    requests: int
    met: float
    request_throughput: float | None
    output_throughput: float | None
    ttft_mean: float | None
    tpot_mean: float | None
    e2el_mean: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacitySearch:
    """Which rate to probe next, and what all probes say.

    Args:
        start: The first rate, req/s.
        target: Share of requests that must meet the service level.
        precision: Half the interval, relative, at which the search stops early.
        most: Probes at most.
        ceiling: The largest rate to try; None for no bound.

    Raises:
        ConfigError: A value that cannot work.
    """

    start: float
    target: float = 0.99
    precision: float = 0.03
    most: int = 12
    ceiling: float | None = None

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("start", math.isfinite(self.start) and self.start > 0, "a rate above 0"),
            ("target", 0.5 <= self.target < 1, "a share from 0.5 to below 1, such as 0.99"),
            ("precision", 0 < self.precision < 1, "a ratio between 0 and 1, such as 0.03"),
            ("most", self.most >= 3, "3 or more probes"),
            ("ceiling", self.ceiling is None or self.ceiling > 0, "a rate above 0, or None"),
        ):
            if not holds:
                raise ConfigError(f"capacity search: {name}={getattr(self, name)!r} must be {allowed}")

    @property
    def requests(self) -> int:
        """Requests a probe should send: twenty of them may miss the level, in a few episodes."""
        return math.ceil(20 / (1 - self.target))

    def next_rate(self, probes: Sequence[Probe]) -> float | None:
        """The next rate to probe; None when the search is over."""
        if not probes:
            return self._capped(self.start)
        if len(probes) >= self.most:
            return None
        good, bad = self._sides(probes)
        if not bad:
            following = self._capped(max(good) * _stride(good))
            return following if following > max(good) else None
        if not good:
            return min(bad) / _stride(bad)
        median, low, high = self._posterior(probes)
        if self._half_width(median, low, high) <= self.precision and self._confirmed(probes, low, high):
            return None
        return self._capped(median)

    def result(self, probes: Sequence[Probe]) -> Capacity:
        """What the probes say."""
        good, bad = self._sides(probes)
        met = f"{self.target:.4g} of the requests meet the service level"
        least, most = min(bad, default=math.nan), max(good, default=math.nan)
        if not good:
            return Capacity(
                rate=None,
                low=0.0,
                high=least,
                confirmed=False,
                probes=tuple(probes),
                reason=f"at no rate down to {least:.3g} req/s {met}",
            )
        if not bad:
            return Capacity(
                rate=None,
                low=most,
                high=math.inf,
                confirmed=False,
                probes=tuple(probes),
                reason=f"{met} at every rate up to {most:.3g} req/s: the capacity is beyond",
            )
        median, low, high = self._posterior(probes)
        confirmed = self._confirmed(probes, low, high)
        wide = self._half_width(median, low, high) > self.precision
        doubt = f" (the interval is wider than ±{self.precision:.0%} after {len(probes)} probes)" if wide else ""
        return Capacity(
            rate=median,
            low=low,
            high=high,
            confirmed=confirmed,
            probes=tuple(probes),
            reason=f"{met} up to {median:.3g} req/s [{low:.3g}, {high:.3g}]{doubt}",
        )

    def _sides(self, probes: Sequence[Probe]) -> tuple[list[float], list[float]]:
        """Rates that held the level by themselves, and those that did not."""
        good = [p.rate for p in probes if p.missed <= 1 - self.target]
        return good, [p.rate for p in probes if p.missed > 1 - self.target]

    def _capped(self, rate: float) -> float:
        return rate if self.ceiling is None else min(rate, self.ceiling)

    @staticmethod
    def _half_width(median: float, low: float, high: float) -> float:
        return (high - low) / 2 / median

    def _confirmed(self, probes: Sequence[Probe], low: float, high: float) -> bool:
        """Two probes at least inside the interval: one found the place, another one agreed."""
        return sum(low <= p.rate <= high for p in probes) >= 2

    def _posterior(self, probes: Sequence[Probe]) -> tuple[float, float, float]:
        """Median and interval of the capacity."""
        import numpy as np

        logs = [math.log(p.rate) for p in probes]
        places = np.linspace(min(logs) - 0.3, max(logs) + 0.3, _PLACES)
        steepness = np.geomspace(*_STEEPNESS)[None, :, None, None]
        spare = np.geomspace(*_SPARE)[None, None, :, None]
        busier = np.array(_BUSIER)[None, None, None, :]
        thresholds = _thresholds(probes)
        support = np.zeros((len(places), steepness.size, spare.size, busier.size))
        for probe, log in zip(probes, logs, strict=True):
            apart = np.clip(log - places, -1.5, 1.5)[:, None, None, None]
            here = steepness * np.exp(-np.clip(spare * apart, -4, 4))
            at_limit = math.log(1 - self.target) + steepness - here + busier * apart
            shares = [np.exp(np.clip(at_limit + here * (1 - u), -25, -1e-6)) for u in thresholds]
            support += _likelihood(probe, thresholds, shares)
        spread = self._spread(probes, thresholds[0])
        tail = (1 - _CREDIBLE) / 2
        (median,) = _quantiles(support / spread**_TRUST, places, (0.5,))
        low, high = _quantiles(support / spread, places, (tail, 1 - tail))
        return median, min(low, median), max(high, median)

    def _spread(self, probes: Sequence[Probe], threshold: float) -> float:
        """E[length²] / E[length] of the episodes, by the probes near the capacity: beyond it they run into each other.

        One spread for all probes: weighing each by its own would believe the lucky ones more.
        """
        allowed = max(_CALM * (1 - self.target), min(p.missed for p in probes))
        lengths = [n for p in probes if p.missed <= allowed for n in p.episodes(threshold)]
        total = sum(lengths)
        return max(1.0, sum(n * n for n in lengths) / total) if total else 1.0


def _quantiles(support: np.ndarray, places: np.ndarray, wanted: Sequence[float]) -> list[float]:
    """Quantiles of the capacity, by a log-likelihood over places and everything else."""
    import numpy as np

    density = np.exp(support - support.max()).sum(axis=(1, 2, 3))
    cumulative = np.cumsum(density) / density.sum()
    return [float(np.exp(np.interp(q, cumulative, places))) for q in wanted]


def _stride(side: Sequence[float]) -> float:
    """How far to go on: a start that is far off must not use the probes up."""
    return _STEP if len(side) < 3 else _STEP**2


def _thresholds(probes: Sequence[Probe]) -> tuple[float, ...]:
    """Where the fitted tail is cut into bins; the last threshold is 1."""
    import numpy as np

    near = [p for p in probes if p.missed < _HOPELESS] or list(probes)
    closest = sorted(near, key=lambda p: p.rate)[-6:]
    uses = np.concatenate([p.counted for p in closest])
    lowest = min(1.0, max(_LOWEST_THRESHOLD, float(np.quantile(uses, _TAIL, method="lower"))))
    thresholds = np.linspace(lowest, 1.0, _BINS) if lowest < 1 else np.ones(1)
    return tuple(float(u) for u in thresholds)


def _likelihood(probe: Probe, thresholds: Sequence[float], shares: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithm of the likelihood of the counts between thresholds; a hopeless probe is only that."""
    import numpy as np

    n = len(probe.counted)
    if probe.missed >= _HOPELESS:
        at_limit = np.minimum(shares[-1], _HOPELESS)
        hopeless: np.ndarray = n * (_HOPELESS * np.log(at_limit) + (1 - _HOPELESS) * np.log1p(-at_limit))
        return hopeless
    above = [sum(use > u for use in probe.counted) for u in thresholds] + [0]
    support: np.ndarray = (n - above[0]) * np.log1p(-shares[0])
    for place, share in enumerate(shares):
        between = share - shares[place + 1] if place + 1 < len(shares) else share
        support = support + (above[place] - above[place + 1]) * np.log(np.maximum(between, 1e-12))
    return support


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Which point of a throughput-latency curve is its knee; None without points.

    Where throughput / latency, the power, is largest (Kleinrock 1979): beyond it latency grows faster than throughput.

    Args:
        points: Throughput and latency, both above 0.
    """
    return max(range(len(points)), key=lambda i: points[i][0] / points[i][1], default=None)
