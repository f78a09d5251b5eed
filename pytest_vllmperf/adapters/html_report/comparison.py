"""Engines side by side: the same workload, one column for each engine, ratios to the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.html_report.plots import Plot, ecdf_plot
from pytest_vllmperf.domain.metrics import Better, Metric, metric
from pytest_vllmperf.domain.units import format_quantity

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.summary import Summary

__all__ = ["Cell", "Comparison", "comparisons"]

_PLOTTED = ("ttft", "tpot", "e2el")
_CURVES = 6
"""More curves than this in one picture cannot be told apart; the table still holds every engine."""
_FAMILIES = {"ttft": ("mean", "p50", "p90", "p99"), "tpot": ("mean", "p50", "p90", "p99"), "e2el": ("mean", "p90")}
"""Statistics compared; of every other distribution the mean."""
_FIRST = {
    *("output_throughput", "goodput", "error_rate", "preemptions", "prefix_cache_hit_rate", "energy_per_output_token"),
    *("device_memory_peak", "host_memory_peak", "time_to_ready", "first_request_ttft", "accuracy", "e2el_mean"),
}
"""What is asked about first, beside TTFT and TPOT; the rest is folded."""
_FOLDED = 3
"""Fewer rows than this are not worth a fold."""
_BAR = 40.0
"""Units from the middle of a bar to its end, which stands for a factor of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One engine's value of one metric.

    ``ratio`` is against the reference ("×1.17"), empty where there is none; ``direction`` is ``better``, ``worse``
    or ``same`` (within the tolerance the catalogue gives the metric; always ``same`` where neither is better).
    ``bar`` is start and width of the ratio's bar in units: 80 across, one in the middle, logarithmic.
    """

    value: str
    ratio: str
    direction: str
    bar: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One workload on two engines or more; the first of ``engines`` is the reference.

    ``engines`` holds name, id of the measurement, and whether it is INVALID; ``rows`` what is asked about first,
    ``more`` the rest.
    """

    workload: str
    description: str
    engines: tuple[tuple[str, str, bool], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    more: tuple[tuple[str, tuple[Cell, ...]], ...]
    plots: tuple[Plot, ...]


def comparisons(report: Report, targets: Mapping[tuple[str, str], str]) -> tuple[Comparison, ...]:
    """One comparison for each workload that two engines or more were measured with, in order of measurement."""
    order = {engine.name: place for place, engine in enumerate(report.engines)}
    by_workload: dict[str, list[Summary]] = {}
    for summary in report.summaries:
        by_workload.setdefault(summary.workload, []).append(summary)
    found = [sorted(group, key=lambda s: order.get(s.engine, len(order))) for group in by_workload.values()]
    return tuple(_comparison(group, targets) for group in found if len({s.engine for s in group}) > 1)


def _comparison(group: Sequence[Summary], targets: Mapping[tuple[str, str], str]) -> Comparison:
    names = dict.fromkeys(name for summary in group for name in summary.metrics if _compared(metric(name)))
    rows = ((name, _cells(name, group)) for name in names)
    compared = [(name, cells) for name, cells in rows if any(cell.ratio for cell in cells)]
    first = [row for row in compared if _first(row[0])]
    more = [row for row in compared if not _first(row[0])]
    if not first or len(more) < _FOLDED:
        first, more = compared, []
    return Comparison(
        workload=group[0].workload,
        description=group[0].description,
        engines=tuple((s.engine, targets[s.engine, s.workload], bool(s.invalid)) for s in group),
        rows=tuple(first),
        more=tuple(more),
        plots=tuple(plot for name in _PLOTTED if (plot := _overlay(name, group)) is not None),
    )


def _first(name: str) -> bool:
    return name in _FIRST or metric(name).family in ("ttft", "tpot")


def _compared(entry: Metric) -> bool:
    if entry.distribution:
        return False
    return entry.statistic is None or entry.statistic in _FAMILIES.get(entry.family or "", ("mean",))


def _cells(name: str, group: Sequence[Summary]) -> tuple[Cell, ...]:
    entry = metric(name)
    values = [_value(summary, entry) for summary in group]
    return tuple(_cell(entry, value, values[0] if i else None) for i, value in enumerate(values))


def _value(summary: Summary, entry: Metric) -> float | None:
    """Its value where it may be compared: measured soundly, with samples enough for the statistic."""
    found = summary.metrics.get(entry.name)
    if found is None or summary.invalid or found.n < entry.minimum_samples:
        return None
    return found.value


def _cell(entry: Metric, value: float | None, reference: float | None) -> Cell:
    shown = format_quantity(value, unit=entry.unit)
    if value is None or reference is None:
        return Cell(value=shown, ratio="", direction="same", bar=None)
    if value <= 0 or reference <= 0:  # a ratio says nothing here; whether anything changed still does
        same = value == reference
        direction = "same" if same else _direction(entry, value - reference)
        return Cell(
            value=shown, ratio="=" if same else "from 0" if not reference else "to 0", direction=direction, bar=None
        )
    ratio = value / reference
    direction = "same" if abs(ratio - 1) <= entry.tolerance else _direction(entry, ratio - 1)
    return Cell(value=shown, ratio=f"×{ratio:.3g}", direction=direction, bar=_bar(ratio))


def _direction(entry: Metric, change: float) -> str:
    if entry.better is Better.NEITHER:
        return "same"
    return "better" if (change < 0) == (entry.better is Better.LOWER) else "worse"


def _bar(ratio: float) -> tuple[int, int]:
    length = _BAR * max(-1.0, min(1.0, math.log2(ratio)))
    return round(_BAR + min(0.0, length)), max(1, round(abs(length)))


def _overlay(name: str, group: Sequence[Summary]) -> Plot | None:
    """The curves of the first engines over one axis; an unsound measurement has none."""
    first = [(s.engine, () if s.invalid or name not in s.metrics else s.metrics[name].samples) for s in group[:_CURVES]]
    if sum(bool(samples) for _, samples in first) < 2:
        return None
    entry = metric(name)
    return ecdf_plot(entry.label, first, unit=entry.unit)
