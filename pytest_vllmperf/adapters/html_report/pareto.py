"""Which engines no other beats: throughput against TTFT, accuracy and memory, for each workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.metrics import Metric, metric
from pytest_vllmperf.domain.pareto import pareto_front
from pytest_vllmperf.domain.section import Point, Scatter, Section

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.summary import Summary

__all__ = ["pareto_section"]

_ACROSS = "output_throughput"
_ALWAYS = "ttft_mean"
_UP = (_ALWAYS, "accuracy", "device_memory_peak", "host_memory_peak")
_FEWEST = 2
_MOST_PLOTS = 24


def pareto_section(report: Report) -> Section | None:
    """A plot for each workload and pair of metrics that two engines or more have values of; None without one.

    Against throughput stands TTFT, and what else differs by more than its tolerance: equal memory and equal answers
    leave nothing to choose.
    """
    plots = list(_plots(report))
    if not plots:
        return None
    hidden = len(plots) - _MOST_PLOTS
    more = (f"{hidden} further plots are left out; report.json has every value.",) if hidden > 0 else ()
    return Section(
        id="pareto",
        title="Which engine for what",
        scatters=tuple(plots[:_MOST_PLOTS]),
        notes=(
            "Filled: no other engine is better in both.",
            "One launch each: engines that lie close together may change places in the next one.",
            *more,
        ),
    )


def _plots(report: Report) -> Iterator[Scatter]:
    by_workload: dict[str, list[Summary]] = {}
    scores: dict[str, dict[str, float]] = {}
    for summary in report.summaries:
        if summary.invalid:
            continue
        if summary.kind == "load":
            by_workload.setdefault(summary.workload, []).append(summary)
        elif (score := _value(summary, "accuracy")) is not None:
            scores.setdefault(summary.workload, {})[summary.engine] = score
    for workload, group in by_workload.items():
        across = _values(group, _ACROSS)
        for name in _UP:
            if name != "accuracy":
                yield from _plot(workload, across, _values(group, name), metric(name), metric(name).label)
        for task, of_engine in scores.items():
            yield from _plot(workload, across, of_engine, metric("accuracy"), f"{task} accuracy")


def _values(group: Sequence[Summary], name: str) -> dict[str, float]:
    return {s.engine: value for s in group if (value := _value(s, name)) is not None}


def _value(summary: Summary, name: str) -> float | None:
    found = summary.metrics.get(name)
    return None if found is None else found.value


def _plot(
    workload: str, across: Mapping[str, float], up: Mapping[str, float], of: Metric, label: str
) -> Iterator[Scatter]:
    both = {engine: (x, up[engine]) for engine, x in across.items() if engine in up}
    if len(both) < _FEWEST:
        return
    values = [y for _, y in both.values()]
    if of.name != _ALWAYS and max(values) - min(values) <= of.tolerance * abs(max(values)):
        return
    entry = metric(_ACROSS)
    front = pareto_front(both, (entry.better, of.better))
    yield Scatter(
        title=workload,
        x_label=entry.label,
        y_label=label,
        x_unit=entry.unit,
        y_unit=of.unit,
        x_better=entry.better.value,
        y_better=of.better.value,
        points=tuple(Point(label=engine, x=x, y=y, front=engine in front) for engine, (x, y) in both.items()),
    )
