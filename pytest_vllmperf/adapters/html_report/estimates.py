"""Forest plots and scatters with a front become geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.adapters.html_report.axes import Axis, Tick, axis_ticks, scaled, short
from pytest_vllmperf.domain.section import Forest, ForestRow, Point, Scatter
from pytest_vllmperf.domain.units import format_quantity

__all__ = [
    "FOREST_WIDTH",
    "SCATTER_HEIGHT",
    "SCATTER_WIDTH",
    "ForestFigure",
    "ScatterFigure",
    "forest_figure",
    "scatter_figure",
    "signed",
]

FOREST_WIDTH = 300
SCATTER_WIDTH, SCATTER_HEIGHT = 600, 340
_ROOM = 0.08
_LEAST = 0.02
_LINE = 20
"""Units between two labels of a scatter, so that none covers another."""
_LETTER = 11
_LABELLED = 14
"""More points than this are labelled only where they belong to the front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnEstimate:
    """One row: its interval from ``left`` to ``right`` with the estimate at ``at``, ``FOREST_WIDTH`` across."""

    label: str
    estimate: str
    interval: str
    left: int
    right: int
    at: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestFigure:
    """Rows over one axis; ``tolerance`` is start and end of the band of no change."""

    title: str
    rows: tuple[DrawnEstimate, ...]
    reference: int
    tolerance: tuple[int, int] | None
    ticks: tuple[Tick, ...]


def forest_figure(forest: Forest) -> ForestFigure:
    """The geometry of ``forest``; the axis holds every interval, the reference and the tolerance."""
    band = forest.tolerance or 0.0
    ends = [forest.reference - band, forest.reference + band]
    ends += [edge for row in forest.rows for edge in (row.low, row.high, row.estimate)]
    room = _ROOM * ((max(ends) - min(ends)) or abs(forest.reference) or 1.0)
    axis = Axis(low=min(ends) - room, high=max(ends) + room)

    def at(value: float) -> int:
        return round(FOREST_WIDTH * axis.share(value))

    return ForestFigure(
        title=forest.title,
        rows=tuple(
            DrawnEstimate(
                label=row.label,
                estimate=signed(row.estimate, forest),
                interval=_interval(row, forest),
                left=at(row.low),
                right=at(row.high),
                at=at(row.estimate),
                kind=row.kind,
                text=row.text,
            )
            for row in forest.rows
        ),
        reference=at(forest.reference),
        tolerance=None if forest.tolerance is None else (at(ends[0]), at(ends[1])),
        ticks=tuple(Tick(x=at(v), text=signed(v, forest)) for v in axis_ticks(axis, forest.unit, most=4)),
    )


def signed(value: float, forest: Forest) -> str:
    """A change with its sign; a ratio to 1 as a factor."""
    if forest.reference == 1.0:
        return f"×{value:.3g}"
    sign = "−" if value < 0 else "+" if value > 0 else ""
    return f"{sign}{format_quantity(abs(value), unit=forest.unit)}"


def _interval(row: ForestRow, forest: Forest) -> str:
    if row.low == row.high == row.estimate:
        return ""
    return f"[{signed(row.low, forest)}, {signed(row.high, forest)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPoint:
    """A point with its label at ``label_x``, ``label_y``; ``end`` is True where the label ends there."""

    x: int
    y: int
    label: str
    told: str
    label_x: int
    label_y: int
    end: bool
    front: bool
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterFigure:
    """Points in a plane; ``front`` is the path through those no other point beats."""

    title: str
    x_label: str
    y_label: str
    points: tuple[DrawnPoint, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    spoken: str


def scatter_figure(scatter: Scatter) -> ScatterFigure | None:
    """The geometry of ``scatter``; None without a point."""
    if not scatter.points:
        return None
    xs = _axis([p.x for p in scatter.points], scatter.x_unit)
    ys = _axis([p.y for p in scatter.points], scatter.y_unit)
    (x_factor, x_name), (y_factor, y_name) = scaled(scatter.x_unit, xs.high), scaled(scatter.y_unit, ys.high)
    x_places, y_places = axis_ticks(xs, scatter.x_unit), axis_ticks(ys, scatter.y_unit, most=4)
    x_numbers, y_numbers = [v / x_factor for v in x_places], [v / y_factor for v in y_places]
    points = _points(scatter, xs, ys)
    front = sorted((p.x, p.y) for p in points if p.front)
    return ScatterFigure(
        title=scatter.title,
        x_label=_axis_label(scatter.x_label, x_name, scatter.x_better, ("←", "→")),
        y_label=_axis_label(scatter.y_label, y_name, scatter.y_better, ("↓", "↑")),
        points=points,
        front="M" + "L".join(f"{x} {y}" for x, y in front) if len(front) > 1 else "",
        x_ticks=tuple(Tick(x=_across(v, xs), text=text) for v, text in zip(x_places, short(x_numbers), strict=True)),
        y_ticks=tuple(Tick(x=_up(v, ys), text=text) for v, text in zip(y_places, short(y_numbers), strict=True)),
        spoken=f"{scatter.title or 'Scatter'}: " + "; ".join(_told(p, scatter) for p in scatter.points),
    )


def _axis(values: Sequence[float], unit: str) -> Axis:
    """An axis with room around the values, at least as wide as makes a small difference look small.

    A share of a whole ends at 100 %.
    """
    low, high = min(values), max(values)
    room = max(_ROOM * (high - low), _LEAST * abs(high)) or 1.0
    top = high + 2 * room
    return Axis(
        low=max(0.0, low - 2 * room) if low >= 0 else low - 2 * room,
        high=max(1.0, high) if unit == "ratio" and low >= 0 and high <= 1 < top else top,
    )


def _axis_label(label: str, unit: str, better: str, arrows: tuple[str, str]) -> str:
    arrow = {"lower": f" {arrows[0]} better", "higher": f" {arrows[1]} better"}.get(better, "")
    return f"{label}, {unit}{arrow}" if unit else f"{label}{arrow}"


def _across(value: float, axis: Axis) -> int:
    return round(SCATTER_WIDTH * axis.share(value))


def _up(value: float, axis: Axis) -> int:
    return round(SCATTER_HEIGHT * (1 - axis.share(value)))


def _points(scatter: Scatter, xs: Axis, ys: Axis) -> tuple[DrawnPoint, ...]:
    """Labels stand beside their points, on the side where there is room, and give way to each other downwards."""
    few = len(scatter.points) <= _LABELLED
    taken: list[tuple[int, int, int]] = []
    drawn = []
    for point in sorted(scatter.points, key=lambda p: (-p.y, p.x)):
        x, y = _across(point.x, xs), _up(point.y, ys)
        label = point.label if few or point.front else ""
        width = _LETTER * len(label)
        end = x + 14 + width > SCATTER_WIDTH
        left = x - 14 - width if end else x + 14
        label_y = y
        while label and any(abs(label_y - other) < _LINE and left < b and left + width > a for a, b, other in taken):
            label_y += _LINE
        taken.append((left, left + width, label_y))
        drawn.append(
            DrawnPoint(
                x=x,
                y=y,
                label=label,
                told=_told(point, scatter),
                label_x=x - 14 if end else x + 14,
                label_y=label_y,
                end=end,
                front=point.front,
                kind=point.kind,
            )
        )
    return tuple(drawn)


def _told(point: Point, scatter: Scatter) -> str:
    x, y = format_quantity(point.x, unit=scatter.x_unit), format_quantity(point.y, unit=scatter.y_unit)
    return f"{point.label}: {scatter.x_label} {x}, {scatter.y_label} {y}" + (" (front)" if point.front else "")
