"""From stored runs to series and what they say: the trend, the suspicion, and the section of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.comparison import COMPARED
from pytest_vllmperf.domain.metrics import METRICS, metric
from pytest_vllmperf.domain.section import Cell, Line, LinePlot, Marker, Section, Table
from pytest_vllmperf.domain.series import Point, Series, SeriesFinding, Shift, comparable
from pytest_vllmperf.domain.stats import reduce_samples
from pytest_vllmperf.domain.units import format_quantity

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.history import StoredMetric, StoredRun

__all__ = ["history_section", "series_of"]

_PLOTS = 6


def series_of(
    runs: Sequence[StoredRun], *, accepted: Sequence[Shift] = (), engines: Iterable[str] = ()
) -> tuple[Series, ...]:
    """One series for each metric of the latest run that was judged, or is compared by default.

    Args:
        runs: Oldest first; the last one is looked at.
        accepted: Shifts that reset the window.
        engines: Only those of these engines; none means all.
    """
    if not runs:
        return ()
    wanted = set(engines)
    found = []
    for engine, workload, name in _judged(runs[-1]):
        if wanted and engine not in wanted:
            continue
        control = _control(runs[-1], engine)
        points = [point for run in runs if (point := _point(run, engine, workload, name, control)) is not None]
        found.append(comparable(engine, workload, name, points, control=control, accepted=accepted))
    return tuple(found)


def _judged(run: StoredRun) -> list[tuple[str, str, str]]:
    """Engine, workload and metric of everything in ``run`` worth following, once each."""
    names: dict[tuple[str, str, str], None] = {}
    for stored in run.metrics:
        outcomes = stored.extra_info.get("outcomes")
        judged = [name for name in outcomes if name in METRICS] if isinstance(outcomes, Mapping) else []
        usual = COMPARED.get(str(stored.extra_info.get("kind")), ())
        judged += [name for name in usual if metric(name).family == stored.metric or name == stored.metric]
        names.update({(stored.engine, stored.workload, name): None for name in judged})
    return [key for key in names if key[2] != "error_rate"]


def _control(run: StoredRun, engine: str) -> str | None:
    """The pinned engine of ``run``; None for itself, and where there is none."""
    for stored in run.metrics:
        subject = stored.extra_info.get("subject")
        if isinstance(subject, Mapping) and subject.get("control") is True:
            return stored.engine if stored.engine != engine else None
    return None


def _point(run: StoredRun, engine: str, workload: str, name: str, control: str | None) -> Point | None:
    mine = _stored(run, engine, workload, name)
    if not mine:
        return None
    info = mine[0].extra_info
    conditions, subject = info.get("conditions"), info.get("subject")
    return Point(
        when=run.datetime,
        value=_value(mine, name),
        control=None if control is None else _value(_stored(run, control, workload, name), name),
        conditions={str(k): str(v) for k, v in conditions.items()} if isinstance(conditions, Mapping) else {},
        subject=subject if isinstance(subject, Mapping) else {},
        sound=all(stored.usable_as_baseline for stored in mine),
    )


def _stored(run: StoredRun, engine: str, workload: str, name: str) -> list[StoredMetric]:
    families = (name, metric(name).family)
    return [m for m in run.metrics if (m.engine, m.workload) == (engine, workload) and m.metric in families]


def _value(stored: Sequence[StoredMetric], name: str) -> float | None:
    """Geometric mean over the launches of a run, whichever experiments made them."""
    values = [value for one in stored for value in _values(one, name)]
    if not values or any(v is None or not math.isfinite(v) or v <= 0 for v in values):
        return None
    return math.exp(math.fsum(math.log(v) for v in values if v) / len(values))


def _values(stored: StoredMetric, name: str) -> list[float | None]:
    replicates = stored.extra_info.get("replicates")
    if isinstance(replicates, Mapping) and isinstance(each := replicates.get(name), Sequence):
        return [v if isinstance(v, (int, float)) else None for v in each]
    statistic = metric(name).statistic
    if statistic is not None:
        return [reduce_samples(stored.samples, statistic)]
    return [math.fsum(stored.samples) / len(stored.samples)] if stored.samples else [None]


def history_section(findings: Sequence[SeriesFinding], notes: Sequence[str] = ()) -> Section | None:
    """What the stored runs say, as a section of the report; None where there is nothing to compare with."""
    told = [f for f in findings if len(f.series.points) > 1]
    if not told:
        return None
    steps = [f for f in told if f.trend.step is not None]
    suspicious = [f for f in told if f.history.suspicious and f.trend.step is None]
    loud = [*steps, *suspicious]
    sentences = tuple(f.sentence for f in loud) or (
        f"{len(told)} series of stored runs: no step to a worse level, nothing outside what earlier runs predict",
    )
    left_out = dict.fromkeys(reason for f in told for reason in f.series.left_out)
    return Section(
        id="history",
        title="Against history",
        sentences=sentences,
        tables=(
            Table(
                head=("engine", "workload", "metric", "latest", "predicted", "runs", "change", "says"),
                rows=tuple(_row(f) for f in told),
                right=("latest", "predicted", "runs", "change"),
                note="A value outside the prediction is a suspicion, not a failure: only fresh launches beside each "
                "other can tell an engine from its machine.",
            ),
        ),
        lines=tuple(_plot(f) for f in (steps or loud)[:_PLOTS]),
        notes=(*left_out, *notes),
        kind="inconclusive" if loud else "shown",
    )


def _row(finding: SeriesFinding) -> tuple[str | Cell, ...]:
    series, band = finding.series, finding.history.band
    unit = "ratio" if series.control else metric(series.metric).unit
    latest = series.values[-1]
    predicted = (
        "" if band is None else f"{format_quantity(band.low, unit=unit)} … {format_quantity(band.high, unit=unit)}"
    )
    change = finding.history.change
    loud = finding.trend.step is not None or finding.history.suspicious
    return (
        series.engine,
        series.workload,
        series.metric + (f" / {series.control}" if series.control else ""),
        Cell(text=format_quantity(latest, unit=unit), value=latest),
        predicted,
        str(len(series.points) - 1),
        Cell(text="" if change is None else f"{100 * change:+.1f} %", value=change),
        Cell(
            text=finding.trend.reason if finding.trend.step is not None else finding.history.reason,
            kind="inconclusive" if loud else "",
        ),
    )


def _plot(finding: SeriesFinding) -> LinePlot:
    series, step = finding.series, finding.trend.step
    places = tuple(float(i) for i in range(len(series.points)))
    marker = () if step is None else (Marker(text=f"{100 * step.change:+.1f} %", x=step.since - 0.5, kind="fail"),)
    return LinePlot(
        title=series.name + (f", ratio to {series.control}" if series.control else ""),
        lines=(Line(name=series.metric, x=places, y=series.values, dots=True),),
        y_unit="ratio" if series.control else metric(series.metric).unit,
        x_label="stored runs",
        x_names=tuple(point.date for point in series.points),
        markers=marker,
        from_zero=False,
    )
