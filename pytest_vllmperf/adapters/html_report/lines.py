"""Line plots become geometry: values over time or over runs, with bands, limits, ceilings and change points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.adapters.html_report.axes import Axis, Tick, axis_ticks, scaled, short
from pytest_vllmperf.domain.section import Line, LinePlot, Marker
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["LINE_HEIGHT", "LINE_WIDTH", "LineFigure", "line_figure"]

LINE_WIDTH, LINE_HEIGHT = 600, 200
"""Units of the drawing area, shown at about half of that in pixels."""
_HEADROOM = 1.06
_MARKER_REACH = 2.0
"""A limit or ceiling up to this many times the largest value stretches the axis; one further away is only named."""
_Y_TICKS = 3
_NAMES = 4
_FLAT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLine:
    """One line as SVG path data; ``area`` is its shaded interval, empty without one."""

    name: str
    series: int
    path: str
    area: str
    dots: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnMarker:
    """A line across the plot at ``x`` or at ``y``; with neither, what lies beyond the axis and is only named."""

    text: str
    x: int | None
    y: int | None
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFigure:
    """One picture. ``unit`` is that of the numbers on the vertical axis; ``spoken`` is for screen readers."""

    title: str
    unit: str
    x_label: str
    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bands: tuple[tuple[int, int, str], ...]
    markers: tuple[DrawnMarker, ...]
    spoken: str


def line_figure(plot: LinePlot) -> LineFigure | None:
    """The geometry of ``plot``; None where no line has a value."""
    values = [y for line in plot.lines for y in (*line.y, *line.low, *line.high) if y is not None]
    places = [x for line in plot.lines for x in line.x]
    if not values:
        return None
    horizontal = _horizontal(plot, places)
    vertical = _vertical(plot, values)
    factor, name = scaled(plot.y_unit, max(abs(vertical.high), abs(vertical.low)))
    places_up = axis_ticks(vertical, plot.y_unit, most=_Y_TICKS)
    return LineFigure(
        title=plot.title,
        unit=name,
        x_label=plot.x_label,
        lines=tuple(_line(line, i, horizontal, vertical) for i, line in enumerate(plot.lines)),
        x_ticks=tuple(_x_ticks(plot, horizontal)),
        y_ticks=tuple(
            Tick(x=_up(y, vertical), text=text)
            for y, text in zip(places_up, short([y / factor for y in places_up]), strict=True)
        ),
        bands=tuple((_across(b.start, horizontal), _across(b.end, horizontal), b.text) for b in plot.bands),
        markers=tuple(_marker(m, horizontal, vertical) for m in plot.markers),
        spoken=_spoken(plot),
    )


def _horizontal(plot: LinePlot, places: Sequence[float]) -> Axis:
    ends = [*places, *(edge for band in plot.bands for edge in (band.start, band.end))]
    low = min(0.0, *ends) if not plot.x_names else 0.0
    high = max(*ends, float(len(plot.x_names) - 1)) if plot.x_names else max(ends)
    return Axis(low=low, high=high if high > low + _FLAT else low + 1.0)


def _vertical(plot: LinePlot, values: Sequence[float]) -> Axis:
    """From zero where asked, else around the values; limits and ceilings that are near are inside."""
    largest, smallest = max(values), min(values)
    reach = _MARKER_REACH * max(abs(largest), abs(smallest))
    near = [m.y for m in plot.markers if m.y is not None and abs(m.y) <= reach]
    high, low = max([largest, *near]), min([smallest, *near])
    if plot.from_zero:
        low = min(0.0, low)
    span = high - low
    if span <= _FLAT * max(abs(high), 1e-30):
        span = abs(high) or 1.0
        return Axis(low=low if plot.from_zero else low - span / 2, high=high + span / 2)
    margin = span * (_HEADROOM - 1)
    return Axis(low=low if plot.from_zero and not low else low - margin, high=high + margin)


def _across(value: float, axis: Axis) -> int:
    return round(LINE_WIDTH * axis.share(value))


def _up(value: float, axis: Axis) -> int:
    return round(LINE_HEIGHT * (1 - axis.share(value)))


def _line(line: Line, series: int, horizontal: Axis, vertical: Axis) -> DrawnLine:
    points = [
        (_across(x, horizontal), None if y is None else _up(y, vertical)) for x, y in zip(line.x, line.y, strict=True)
    ]
    area = ""
    if line.low and line.high:
        over = [(_across(x, horizontal), _up(y, vertical)) for x, y in zip(line.x, line.high, strict=True)]
        under = [(_across(x, horizontal), _up(y, vertical)) for x, y in zip(line.x, line.low, strict=True)]
        area = "M" + "L".join(f"{x} {y}" for x, y in [*over, *under[::-1]]) + "z"
    return DrawnLine(
        name=line.name,
        series=series,
        path=_path(points, steps=line.steps),
        area=area,
        dots=tuple((x, y) for x, y in points if y is not None) if line.dots else (),
    )


def _path(points: Sequence[tuple[int, int | None]], *, steps: bool) -> str:
    """Runs of known points, each a line of its own; as steps each value lasts until the next place."""
    pieces: list[str] = []
    for known, run in itertools.groupby(points, key=lambda point: point[1] is not None):
        if not known:
            continue
        (first_x, first_y), *rest = run
        pieces.append(f"M{first_x} {first_y}")
        pieces += [f"H{x}V{y}" if steps else f"L{x} {y}" for x, y in rest]
    if steps and points and points[-1][1] is not None:
        pieces.append(f"H{LINE_WIDTH}")
    return "".join(pieces)


def _x_ticks(plot: LinePlot, axis: Axis) -> list[Tick]:
    if not plot.x_names:
        return [
            Tick(x=_across(x, axis), text=format_quantity(x, unit=plot.x_unit)) for x in axis_ticks(axis, plot.x_unit)
        ]
    count = len(plot.x_names)
    shown = sorted({round(i * (count - 1) / max(1, _NAMES - 1)) for i in range(min(count, _NAMES))})
    return [Tick(x=_across(i, axis), text=plot.x_names[i]) for i in shown]


def _marker(marker: Marker, horizontal: Axis, vertical: Axis) -> DrawnMarker:
    x = None if marker.x is None else _across(marker.x, horizontal)
    inside = marker.y is not None and vertical.low <= marker.y <= vertical.high
    y = _up(marker.y, vertical) if inside and marker.y is not None else None
    arrow = "" if x is not None or inside else " ↑" if (marker.y or 0) > vertical.high else " ↓"
    return DrawnMarker(text=f"{marker.text}{arrow}", x=x, y=y, kind=marker.kind)


def _spoken(plot: LinePlot) -> str:
    parts = []
    for line in plot.lines:
        known = [y for y in line.y if y is not None]
        if known:
            low, high = (format_quantity(edge, unit=plot.y_unit) for edge in (min(known), max(known)))
            parts.append(f"{line.name}: {low} to {high}")
    return "; ".join([plot.title, *parts, *(m.text for m in plot.markers), *(b.text for b in plot.bands)])
