"""Capacity: the largest request rate at which the service level is still met by nearly every request.

What a request took of its service level is its *use*: the largest of latency / limit over the stated limits, infinite
where it failed. The capacity is the rate at which a share of ``target`` has a use of at most 1. Probes find a bracket
first, then go where all of them together place the capacity (``capacity_fit``), until its interval is narrow and three
probes lie inside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.capacity_fit import HOPELESS, CapacityFit, fit_capacity
from pytest_vllmperf.errors import ConfigError

__all__ = ["Capacity", "CapacitySearch", "CurvePoint", "Probe", "knee"]

_OPENING = 0.1
"""Part of a probe's requests that is not counted: its queue starts empty."""
_STEP = 1.3
"""From probe to probe, as long as one side of the bracket is missing; squared from the third such step on."""
_AGREED = 3
"""Probes inside the interval before the search may stop early."""
_BEYOND = 1.2
"""How far from all earlier probes, as a ratio, the next one may go once there is a bracket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One measurement at one rate.

    Args:
        rate: Asked for, req/s.
        uses: What each request took of the service level, in the order of sending.
        arrived: The rate at which requests really arrived, req/s: by chance another one; None where that is not known.
    """

    rate: float
    uses: tuple[float, ...]
    arrived: float | None = None

    @property
    def counted(self) -> tuple[float, ...]:
        """Without the opening, in which the queue fills."""
        return self.uses[math.ceil(_OPENING * len(self.uses)) :] or self.uses

    @property
    def missed(self) -> float:
        """Share of the counted requests that did not meet the level."""
        return sum(use > 1 for use in self.counted) / len(self.counted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Where the search ended.

    Args:
        rate: The capacity in requests per second; None when no rate met the level, or the bracket has no upper side.
        low: Lower end of the 95 % interval; with ``rate`` None the largest rate known to meet the level, or 0.
        high: Upper end; ``inf`` where every rate probed met the level.
        confirmed: Whether a second probe lies inside the interval.
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
        clumping: Variance / mean of how many requests arrive in a long time: 1 for Poisson arrivals, 1 / burstiness
            for gamma distributed gaps, times the size of bursts.

    Raises:
        ConfigError: A value that cannot work.
    """

    start: float
    target: float = 0.99
    precision: float = 0.03
    most: int = 12
    ceiling: float | None = None
    clumping: float = 1.0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("start", math.isfinite(self.start) and self.start > 0, "a rate above 0"),
            ("target", 0.5 <= self.target < 1, "a share from 0.5 to below 1, such as 0.99"),
            ("precision", 0 < self.precision < 1, "a ratio between 0 and 1, such as 0.03"),
            ("most", self.most >= 3, "3 or more probes"),
            ("clumping", self.clumping > 0, "above 0"),
            ("ceiling", self.ceiling is None or self.ceiling > 0, "a rate above 0, or None"),
        ):
            if not holds:
                raise ConfigError(f"capacity search: {name}={getattr(self, name)!r} must be {allowed}")

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
        fit = self._fit(probes)
        if self._half_width(fit) <= self.precision and _inside(probes, fit) >= _AGREED:
            return None
        rates = (*good, *bad)
        return self._capped(min(max(fit.rate, min(rates) / _BEYOND), max(rates) * _BEYOND))

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
        fit = self._fit(probes)
        wide = self._half_width(fit) > self.precision
        doubt = f" (the interval is wider than ±{self.precision:.0%} after {len(probes)} probes)" if wide else ""
        return Capacity(
            rate=fit.rate,
            low=fit.low,
            high=fit.high,
            confirmed=_inside(probes, fit) >= 2,
            probes=tuple(probes),
            reason=f"{met} up to {fit.rate:.3g} req/s [{fit.low:.3g}, {fit.high:.3g}]{doubt}",
        )

    def _sides(self, probes: Sequence[Probe]) -> tuple[list[float], list[float]]:
        """Rates that held the level by themselves, and those that did not."""
        good = [p.rate for p in probes if p.missed <= 1 - self.target]
        return good, [p.rate for p in probes if p.missed > 1 - self.target]

    def _capped(self, rate: float) -> float:
        return rate if self.ceiling is None else min(rate, self.ceiling)

    @staticmethod
    def _half_width(fit: CapacityFit) -> float:
        return (fit.high - fit.low) / 2 / fit.rate

    def _fit(self, probes: Sequence[Probe]) -> CapacityFit:
        import numpy as np

        good, bad = self._sides(probes)
        arrived = [probe.arrived for probe in probes if probe.arrived is not None]
        known = len(arrived) == len(probes)
        whole = [len(probe.uses) for probe in probes if probe.missed < HOPELESS] or [len(p.uses) for p in probes]
        sent = max(2.0, float(np.median(whole)) / self.clumping)
        return fit_capacity(
            [np.array(probe.counted) for probe in probes],
            arrived if known else [probe.rate for probe in probes],
            sent=sent if known else None,
            missed=1 - self.target,
            middle=math.sqrt(float(np.median(good)) * float(np.median(bad))),
        )


def _inside(probes: Sequence[Probe], fit: CapacityFit) -> int:
    return sum(fit.low <= probe.rate <= fit.high for probe in probes)


def _stride(side: Sequence[float]) -> float:
    """How far to go on: a start that is far off must not use the probes up."""
    return _STEP if len(side) < 3 else _STEP**2


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Which point of a throughput-latency curve is its knee; None without points.

    Where throughput / latency, the power, is largest (Kleinrock 1979): beyond it latency grows faster than throughput.

    Args:
        points: Throughput and latency, both above 0.
    """
    return max(range(len(points)), key=lambda i: points[i][0] / points[i][1], default=None)
