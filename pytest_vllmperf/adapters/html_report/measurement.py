"""One measurement as the page shows it: its curves, every metric, what failed, and what casts doubt on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.html_report.over_time import Phase, Waterfall, phases, time_figures, waterfall
from pytest_vllmperf.adapters.html_report.plots import Plot, ecdf_plot
from pytest_vllmperf.adapters.html_report.table import PLOTTED
from pytest_vllmperf.domain.metrics import STATISTICS, metric
from pytest_vllmperf.domain.units import MISSING, format_quantity

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.html_report.lines import LineFigure
    from pytest_vllmperf.adapters.html_report.table import Line
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.summary import MetricValue, Summary
    from pytest_vllmperf.domain.thresholds import Limit, Verdict

__all__ = ["Failure", "Measurement", "measurements"]

_MARKED = ("mean", "p50", "p90", "p99")
_LONGEST_FACT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One class of failed requests; ``width`` is its share of all requests, in units of 100."""

    name: str
    count: int
    share: str
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One :class:`~pytest_vllmperf.domain.summary.Summary`.

    ``distributions`` holds name, number of samples and one text for each of ``STATISTICS`` (with whether there are
    samples enough to judge it); ``scalars`` name and text; ``missing`` names without a value and why;
    ``phases`` a title and the parts of each way to divide a mean request's time.
    """

    id: str
    summary: Summary
    duration: str
    kind: str
    lines: tuple[Line, ...]
    plots: tuple[Plot, ...]
    over_time: tuple[LineFigure, ...]
    waterfall: Waterfall | None
    phases: tuple[tuple[str, tuple[Phase, ...]], ...]
    time_notes: tuple[str, ...]
    failures: tuple[Failure, ...]
    distributions: tuple[tuple[str, int, tuple[tuple[str, bool], ...]], ...]
    scalars: tuple[tuple[str, str], ...]
    missing: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]


def measurements(
    report: Report, targets: Mapping[tuple[str, str], str], lines: Mapping[tuple[str, str], Sequence[Line]]
) -> tuple[Measurement, ...]:
    """Every measurement in order; ``targets`` maps engine and workload to its id, ``lines`` to its rows."""
    limits: dict[tuple[str, str, str], tuple[Limit, Verdict]] = {}
    for verdict in report.verdicts:
        if verdict.limit is not None:
            limits[verdict.engine, verdict.workload, verdict.metric] = (verdict.limit, verdict)
    host = report.environment.memory_bytes
    return tuple(
        _measurement(s, targets[s.engine, s.workload], lines.get((s.engine, s.workload), ()), limits, host)
        for s in report.summaries
    )


def _measurement(
    summary: Summary,
    target: str,
    lines: Sequence[Line],
    limits: Mapping[tuple[str, str, str], tuple[Limit, Verdict]],
    host_memory_bytes: int,
) -> Measurement:
    kinds = {line.kind for line in lines}
    worst = next((k for k in ("fail", "invalid", "inconclusive", "pass") if k in kinds), "shown")
    values = summary.metrics.values()
    scalars = [v for v in values if not metric(v.name).distribution and metric(v.name).statistic is None]
    return Measurement(
        id=target,
        summary=summary,
        duration=format_quantity(summary.duration_s, unit="s"),
        kind="invalid" if summary.invalid else worst,
        lines=tuple(lines),
        plots=tuple(plot for name in PLOTTED if (plot := _plot(name, target, summary, limits)) is not None),
        over_time=time_figures(summary.timeline, host_memory_bytes=host_memory_bytes) if summary.timeline else (),
        waterfall=waterfall(summary.timeline) if summary.timeline else None,
        phases=tuple(phases(summary)),
        time_notes=(),
        failures=tuple(_failures(summary)),
        distributions=tuple(_distribution(v, summary) for v in values if metric(v.name).distribution and v.n),
        scalars=tuple((v.name, _shown(v)) for v in scalars if v.value is not None),
        missing=tuple(_missing(summary)),
        facts=tuple(_facts({name: fact for name, fact in summary.facts.items() if name != "examples"})),
    )


def _shown(value: MetricValue | None) -> str:
    return MISSING if value is None else format_quantity(value.value, unit=metric(value.name).unit)


def _plot(
    name: str, target: str, summary: Summary, limits: Mapping[tuple[str, str, str], tuple[Limit, Verdict]]
) -> Plot | None:
    """The ECDF of one distribution with its percentiles and limits; None without samples."""
    whole = summary.metrics.get(name)
    if whole is None or not whole.samples:
        return None
    entry = metric(name)
    return ecdf_plot(
        entry.label,
        [(summary.engine, whole.samples)],
        unit=entry.unit,
        statistics=tuple(_statistics(name, summary)),
        limits=tuple(_limits(name, summary, limits)),
        id=f"{target}-{name}",
    )


def _limits(
    name: str, summary: Summary, limits: Mapping[tuple[str, str, str], tuple[Limit, Verdict]]
) -> Iterator[tuple[str, float, str]]:
    """Text, bound and outcome of every limit on a statistic of this distribution."""
    for statistic in STATISTICS:
        found = limits.get((summary.engine, summary.workload, f"{name}_{statistic}"))
        if found is not None:
            limit, verdict = found
            bounds = (bound for bound in (limit.maximum, limit.minimum) if bound is not None)
            yield from ((f"{statistic} {limit.text}", bound, str(verdict.outcome)) for bound in bounds)


def _statistics(name: str, summary: Summary) -> Iterator[tuple[str, float]]:
    for statistic in _MARKED:
        found = summary.metrics.get(f"{name}_{statistic}")
        if found is not None and found.value is not None:
            yield statistic, found.value


def _failures(summary: Summary) -> Iterator[Failure]:
    for name, count in sorted(summary.failures.items(), key=lambda item: -item[1]):
        share = count / summary.requests if summary.requests else 0.0
        text = format_quantity(share, unit="ratio")
        yield Failure(name=name, count=count, share=text, width=max(1, round(100 * min(1.0, share))))


def _distribution(value: MetricValue, summary: Summary) -> tuple[str, int, tuple[tuple[str, bool], ...]]:
    """Its statistics; those with too few samples to be judged are told apart."""
    cells = []
    for name, statistic in STATISTICS.items():
        found = summary.metrics.get(f"{value.name}_{name}")
        cells.append((_shown(found), value.n >= statistic.minimum_samples))
    return value.name, value.n, tuple(cells)


def _missing(summary: Summary) -> Iterator[tuple[str, str]]:
    """What has no value and why; the statistics of a distribution without samples go without saying."""
    for value in summary.metrics.values():
        if value.missing is not None and metric(value.name).statistic is None:
            yield value.name, value.missing


def _facts(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts; mappings inside are flattened, seconds get a unit, lists and long texts are cut."""
    for key, fact in facts.items():
        name = f"{prefix}{key}"
        if isinstance(fact, Mapping):
            yield from _facts(fact, f"{name}.")
        else:
            yield name, _fact(name, fact)


def _fact(name: str, fact: object) -> str:
    if fact is None:
        return MISSING
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, float) and name.endswith("_s"):
        return format_quantity(fact, unit="s")
    if isinstance(fact, float) and name.endswith(("_share", "_rate")):
        return format_quantity(fact, unit="ratio")
    if isinstance(fact, (list, tuple)):
        text = ", ".join(str(item) for item in fact)
        return text if len(text) <= _LONGEST_FACT else f"{text[:_LONGEST_FACT]} … ({len(fact)} in all)"
    text = str(fact)
    return text if len(text) <= _LONGEST_FACT else f"{text[:_LONGEST_FACT]} …"
