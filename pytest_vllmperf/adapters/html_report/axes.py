"""Axes of every picture: where a value stands, and which round values are labelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.units import format_quantity

__all__ = ["Axis", "Tick", "axis_ticks", "distinct", "scaled", "short"]

_TICKS = 5
_MOST_DIGITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis from ``low`` to ``high`` (base units), logarithmic where ``log``."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` stands, from 0 to 1; values beyond the axis stand at its end."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A labelled place on an axis, in units of the drawing area."""

    x: int
    text: str


def axis_ticks(axis: Axis, unit: str, *, most: int = _TICKS) -> list[float]:
    """Round values inside the axis, about ``most`` of them at most."""
    return _log_ticks(axis, most) if axis.log else _linear_ticks(axis, unit, most)


def _linear_ticks(axis: Axis, unit: str, most: int) -> list[float]:
    """Multiples of a decimal step; of bytes in the unit they are shown in, so that 2.9 GiB is followed by 3 GiB."""
    whole = scaled(unit, max(abs(axis.high), abs(axis.low)))[0] if unit == "B" else 1.0
    span = (axis.high - axis.low) / whole
    base = 10.0 ** math.floor(math.log10(span))
    factors = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0)
    step = whole * next((base * f for f in factors if span / (base * f) <= most), base * factors[-1])
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def _log_ticks(axis: Axis, most: int) -> list[float]:
    """Powers of ten inside the axis; of those, evenly at most about ``most``."""
    first, last = math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high))
    return [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first) / most)))]


_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s")),
    "B": ((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB")),
    "ratio": ((0.01, "%"),),
    "Hz": ((1.0, "Hz"), (1e6, "MHz"), (1e9, "GHz")),
}


def scaled(unit: str, largest: float) -> tuple[float, str]:
    """The factor and the name of the unit in which an axis up to ``largest`` reads best."""
    known = _SCALES.get(unit, ((1.0, "" if unit == "count" else unit),))
    fitting = [scale for scale in known if abs(largest) >= scale[0]]
    return (fitting or known[:1])[-1]


def short(values: Sequence[float]) -> list[str]:
    """The numbers of ticks: ``1.5k`` rather than ``1 500``, with as many digits as tell them apart."""
    return distinct(values, _short)


def _short(value: float, digits: int) -> str:
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{format_quantity(value / factor, unit='count', digits=digits)}{letter}"
    return format_quantity(value, unit="count", digits=digits)


def distinct(values: Sequence[float], text: Callable[[float, int], str]) -> list[str]:
    """``text`` of each value with three digits, or with the fewest more that make all of them differ."""
    for digits in range(3, _MOST_DIGITS):
        texts = [text(value, digits) for value in values]
        if len(set(texts)) == len(texts):
            return texts
    return [text(value, _MOST_DIGITS) for value in values]
