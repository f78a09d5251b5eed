"""Samples become the geometry of small SVG pictures; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_vllmperf.adapters.html_report.axes import Axis, Tick, axis_ticks, distinct
from pytest_vllmperf.domain.metrics import STATISTICS
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["HEIGHT", "WIDTH", "Curve", "Mark", "Plot", "ecdf_path", "ecdf_plot", "sparkline"]

WIDTH, HEIGHT = 600, 240
"""Units of the drawing area. It is shown at about half of that in pixels: one unit is finer than a pixel."""

_LOG_FROM = 30.0
"""A largest sample this many times the median would press a linear curve flat against its axis."""
_SHORTEST = 1e-9
"""A clock in nanoseconds knows nothing shorter; no axis needs to be finer."""
_CROWDED = 0.4
"""Curves that all lie beyond this share of an axis from zero get an axis that begins near them."""
_LEFT, _RIGHT = 0.08, 0.04
_HEADROOM = 1.04
_LIMIT_REACH = 1.5
"""A limit up to this many times the largest sample stretches the axis; one further away is only named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A percentile on its curve; or, without ``y``, a mean on the axis or a limit across the whole height.

    ``enough`` is False for a statistic with too few samples to be judged, ``beyond`` True for a limit that
    lies outside of the axis.
    """

    x: int
    y: int | None
    text: str
    verdict: str = ""
    enough: bool = True
    beyond: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One ECDF: ``path`` is SVG path data inside ``WIDTH`` × ``HEIGHT``, y pointing down.

    ``series`` numbers its colour: the place of its measurement among all that were given.
    """

    name: str
    path: str
    series: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One picture: curves over a shared axis. ``spoken`` is what a screen reader says of it."""

    title: str
    curves: tuple[Curve, ...]
    ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    limits: tuple[Mark, ...]
    log: bool
    spoken: str
    id: str = ""


def ecdf_plot(
    title: str,
    samples: Sequence[tuple[str, Sequence[float]]],
    *,
    unit: str,
    statistics: Sequence[tuple[str, float]] = (),
    limits: Sequence[tuple[str, float, str]] = (),
    id: str = "",  # noqa: A002 - what HTML calls it
) -> Plot:
    """The empirical distribution of one or several measurements, as far as their samples are finite.

    Args:
        title: What is on the horizontal axis.
        samples: Name and samples of each curve, which is left out without samples; one at least has some.
        unit: Base unit of the samples.
        statistics: Name and value of each of ``STATISTICS`` to mark.
        limits: Text, value and verdict of each limit to draw.
        id: What links point at.
    """
    finite = [(series, name, np.sort(_finite(values))) for series, (name, values) in enumerate(samples)]
    drawn = [(series, name, values) for series, name, values in finite if values.size]
    axis = _axis([values for _, _, values in drawn], [value for _, value, _ in limits])
    fewest = min(values.size for _, _, values in drawn)
    marks = [_mark(name, value, fewest, axis, unit) for name, value in statistics]
    said = [f"{name}: {values.size} samples" for _, name, values in drawn] + [mark.text for mark in marks]
    return Plot(
        title=title,
        curves=tuple(Curve(name=name, path=ecdf_path(values, axis), series=series) for series, name, values in drawn),
        ticks=_ticks(axis, unit),
        marks=tuple(marks),
        limits=tuple(_limit(text, value, verdict, axis) for text, value, verdict in limits),
        log=axis.log,
        id=id,
        spoken=f"Distribution of {title}; " + ", ".join([*said, *(f"limit {text}" for text, _, _ in limits)]),
    )


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    finite: np.ndarray = array[np.isfinite(array)]
    return finite


def _shown(value: float, unit: str) -> str:
    return format_quantity(value, unit=unit)


def _mark(name: str, value: float, n: int, axis: Axis, unit: str) -> Mark:
    statistic = STATISTICS[name]
    return Mark(
        x=_unit_of(value, axis),
        y=None if statistic.quantile is None else round(HEIGHT * (1 - statistic.quantile)),
        text=f"{name} {_shown(value, unit)}",
        enough=n >= statistic.minimum_samples,
    )


def _limit(text: str, value: float, verdict: str, axis: Axis) -> Mark:
    return Mark(x=_unit_of(value, axis), y=None, text=text, verdict=verdict, beyond=value > axis.high)


def _axis(curves: Sequence[np.ndarray], limits: Sequence[float]) -> Axis:
    """An axis that holds every sample, and the limits that are near."""
    largest = max(float(values[-1]) for values in curves)
    smallest = min(float(values[0]) for values in curves)
    near = [limit for limit in limits if limit <= _LIMIT_REACH * largest]
    high = max([largest, *near]) * _HEADROOM
    median = min(float(np.median(values)) for values in curves)
    if smallest >= _SHORTEST and largest > _LOG_FROM * median:
        return Axis(low=min([smallest, *(limit for limit in near if limit >= _SHORTEST)]) * 0.9, high=high, log=True)
    if smallest >= _SHORTEST and smallest > _CROWDED * high:
        span = max(high / _HEADROOM - smallest, _SHORTEST)
        return Axis(low=smallest - _LEFT * span, high=high / _HEADROOM + _RIGHT * span, log=False)
    low = min(0.0, smallest)
    return Axis(low=low, high=high if high > low + _SHORTEST else low + 1.0, log=False)


def ecdf_path(ordered: np.ndarray, axis: Axis) -> str:
    """The staircase of ascending samples, as SVG path data.

    Every step that is wider or higher than one unit of the drawing area is there, at its true place: what is left
    out cannot be seen. So the path has at most ``WIDTH + HEIGHT`` segments, however many samples there are.
    """
    columns = _columns(ordered, axis)
    rises = np.round(HEIGHT * np.arange(1, ordered.size + 1) / ordered.size).astype(np.int64)
    last_of_column = np.append(columns[1:] > columns[:-1], True)
    xs, ys = columns[last_of_column], rises[last_of_column]
    visible = np.diff(ys, prepend=0) > 0
    xs, ys = xs[visible], ys[visible]
    across, up = np.diff(xs, prepend=0), np.diff(ys, prepend=0)
    steps = "".join(f"h{dx}v{-dy}" if dx else f"v{-dy}" for dx, dy in zip(across.tolist(), up.tolist(), strict=True))
    return f"M0 {HEIGHT}{steps}H{WIDTH}"


def _columns(ordered: np.ndarray, axis: Axis) -> np.ndarray:
    """:meth:`Axis.share` of a whole array, in whole units."""
    if axis.log:
        share = np.log(ordered / axis.low) / math.log(axis.high / axis.low)
    else:
        share = (ordered - axis.low) / (axis.high - axis.low)
    columns: np.ndarray = np.round(WIDTH * np.clip(share, 0.0, 1.0)).astype(np.int64)
    return columns


def _ticks(axis: Axis, unit: str) -> tuple[Tick, ...]:
    places = axis_ticks(axis, unit)
    texts = distinct(places, lambda value, digits: format_quantity(value, unit=unit, digits=digits))
    return tuple(Tick(x=_unit_of(value, axis), text=text) for value, text in zip(places, texts, strict=True))


def _unit_of(value: float, axis: Axis) -> int:
    return round(WIDTH * axis.share(value))


_SPARK_WIDTH, _SPARK_HEIGHT = 96, 20
_SPARK_EDGE = 3


def sparkline(values: Sequence[float]) -> tuple[str, int, int]:
    """Points of a polyline in 96 × 20 units through ``values``, oldest first, and its last point.

    The height spans smallest to largest; values that are all the same run along the middle.
    """
    low, high = min(values), max(values)
    width, height = _SPARK_WIDTH - 2 * _SPARK_EDGE, _SPARK_HEIGHT - 2 * _SPARK_EDGE
    points = [
        (
            round(_SPARK_EDGE + width * i / max(1, len(values) - 1)),
            round(_SPARK_EDGE + height * (1 - ((value - low) / (high - low) if high > low else 0.5))),
        )
        for i, value in enumerate(values)
    ]
    return " ".join(f"{x},{y}" for x, y in points), *points[-1]
