"""How this run stands against stored ones: what changed since the latest, and the trend with steps to a worse level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.html_report.trends import PastRun, Trends
from pytest_vllmperf.domain.change_points import change_points
from pytest_vllmperf.domain.metrics import Better, Metric, metric
from pytest_vllmperf.domain.section import Line, LinePlot, Marker, Section
from pytest_vllmperf.domain.trend import scan_trend

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report

__all__ = ["Changes", "changes", "trend_section"]

_FEWEST = 5
"""Earlier values below which a line says nothing."""
_MOST_PLOTS = 24
_NAMED = 6
_STEPS = "Marked: changes of level, to a worse one in red, to a better one in green (one of 200 steady series errs)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs from the latest stored run: software, and values that moved by more than their tolerance.

    ``when`` is that run's date; ``moved`` holds a text, a kind (``better`` or ``worse``) and the measurement's
    engine and workload; ``hidden`` counts those left out.
    """

    when: str
    software: tuple[str, ...]
    moved: tuple[tuple[str, str, tuple[str, str]], ...]
    hidden: int
    same: int


def changes(report: Report, history: Sequence[PastRun], trends: Trends) -> Changes | None:
    """Compare with the latest comparable values; None without an earlier run."""
    if not history:
        return None
    moved: list[tuple[float, str, str, tuple[str, str]]] = []
    same = 0
    for engine, workload, name, now in _watched(report):
        past = trends.values(engine, workload, name)
        if not past or not past[-1][1]:
            continue
        entry, ratio = metric(name), now / past[-1][1] - 1
        if abs(ratio) <= entry.tolerance or entry.better is Better.NEITHER:
            same += 1
            continue
        kind = "better" if (ratio < 0) == (entry.better is Better.LOWER) else "worse"
        sign = "−" if ratio < 0 else "+"
        text = f"{engine} × {workload}: {entry.label} {sign}{100 * abs(ratio):.3g} %"
        moved.append((abs(ratio) / (entry.tolerance or 0.01), text, kind, (engine, workload)))
    if not moved and not same:
        return None
    moved.sort(key=lambda found: (found[2] != "worse", -found[0]))
    return Changes(
        when=history[-1].datetime[:16].replace("T", " "),
        software=tuple(_software(report, history[-1])),
        moved=tuple((text, kind, subject) for _, text, kind, subject in moved[:_NAMED]),
        hidden=max(0, len(moved) - _NAMED),
        same=same,
    )


def _software(report: Report, past: PastRun) -> Iterator[str]:
    info = next((stored.extra_info for stored in past.metrics), {})
    here = report.environment
    for name, now in (("vllm", here.packages.get("vllm")), ("commit", here.commit)):
        before = info.get(name)
        if isinstance(before, str) and now and before != now:
            yield f"{'vLLM' if name == 'vllm' else name} {before[:12]} → {now[:12]}"


def _watched(report: Report) -> Iterator[tuple[str, str, str, float]]:
    """What has a limit; without any limit, every scalar and every mean."""
    judged = {(v.engine, v.workload, v.metric) for v in report.verdicts if v.limit is not None and not v.against}
    for summary in report.summaries:
        if summary.invalid:
            continue
        for value in summary.metrics.values():
            entry = metric(value.name)
            if value.value is None or entry.distribution or value.n < entry.minimum_samples:
                continue
            key = (summary.engine, summary.workload, value.name)
            if key in judged or (not judged and entry.statistic in (None, "mean")):
                yield (*key, value.value)


def trend_section(report: Report, trends: Trends, *, judged: bool) -> Section | None:
    """One line for each watched metric with enough stored runs; None without one.

    Changes of level are marked; nothing is said of them where another section has ``judged`` the series already.
    """
    found = []
    for engine, workload, name, now in _watched(report):
        past = trends.values(engine, workload, name)
        if len(past) >= _FEWEST and metric(name).better is not Better.NEITHER:
            found.append(_plot(engine, workload, name, [*past, (report.started_at, now)], scan=not judged))
    if not found:
        return None
    found.sort(key=lambda plot: (not _worse_now(plot), not plot.markers))
    stepped = 0 if judged else sum(_worse_now(plot) for plot in found)
    hidden = len(found) - _MOST_PLOTS
    sentences = [f"{stepped} of {len(found)} series are at a worse level than before." if stepped else ""]
    more = (f"{hidden} further series without a step are left out.",) if hidden > 0 else ()
    return Section(
        id="trend",
        title="Trend",
        sentences=tuple(sentence for sentence in sentences if sentence),
        lines=tuple(found[:_MOST_PLOTS]),
        notes=(
            "Stored runs of the same engine, workload and model on this hardware, this one last.",
            _STEPS,
            *more,
        ),
        kind="inconclusive" if stepped else "",
    )


def _worse_now(plot: LinePlot) -> bool:
    """True where the latest change was for the worse."""
    return bool(plot.markers) and plot.markers[-1].kind == "worse"


def _plot(engine: str, workload: str, name: str, values: Sequence[tuple[str, float]], *, scan: bool) -> LinePlot:
    entry = metric(name)
    return LinePlot(
        title=f"{entry.label} of {engine} × {workload}",
        y_unit=entry.unit,
        x_names=tuple(when[5:10] for when, _ in values),
        from_zero=False,
        lines=(
            Line(
                name=name,
                x=tuple(float(i) for i in range(len(values))),
                y=tuple(value for _, value in values),
                dots=len(values) <= 60,
            ),
        ),
        markers=tuple(_markers(values, entry, scan=scan)),
    )


def _markers(values: Sequence[tuple[str, float]], entry: Metric, *, scan: bool) -> Iterator[Marker]:
    """Every change of level, and a step of the last runs that is too short to be one yet."""
    found = change_points([value for _, value in values])
    for point in found:
        yield _marker(values, point.at, point.change, (point.after > point.before) == (entry.better is Better.LOWER))
    since = found[-1].at if found else 0
    step = scan_trend([value for _, value in values[since:]], better=entry.better).step if scan else None
    if step is not None:
        yield _marker(values, since + step.since, step.change, True)


def _marker(values: Sequence[tuple[str, float]], at: int, change: float | None, worse: bool) -> Marker:
    when = values[at][0][5:10]
    size = "" if change is None else f"{'−' if change < 0 else '+'}{100 * abs(change):.3g} % "
    return Marker(text=f"{size}since {when}", x=float(at), kind="worse" if worse else "better")
