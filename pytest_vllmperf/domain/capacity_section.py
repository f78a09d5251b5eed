"""A capacity search as a part of the report: a sentence, the throughput-latency curve with its knee, every load."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pytest_vllmperf.domain.capacity import Capacity, CurvePoint, knee
from pytest_vllmperf.domain.section import Cell, Kind, Line, LinePlot, Marker, Section, Table, section_id
from pytest_vllmperf.domain.units import format_quantity
from pytest_vllmperf.domain.workload import ServiceLevel

__all__ = ["capacity_section", "capacity_sentence", "knee_of", "level_text"]


def level_text(level: ServiceLevel) -> str:
    """The service level in words, such as ``TTFT ≤ 1 s and TPOT ≤ 50 ms``."""
    asked = (("TTFT", level.ttft_s), ("TPOT", level.tpot_s), ("E2EL", level.e2el_s))
    return " and ".join(f"{name} ≤ {format_quantity(s, unit='s')}" for name, s in asked if s is not None)


def knee_of(curve: Sequence[CurvePoint]) -> CurvePoint | None:
    """The point where throughput / latency is largest; None for fewer than three complete points.

    The latency is the mean E2EL, so that neither a slow first token nor a slow pace goes unseen.
    """
    complete = [p for p in curve if p.request_throughput and p.e2el_mean]
    if len(complete) < 3:
        return None
    place = knee([(p.request_throughput or 0.0, p.e2el_mean or math.inf) for p in complete])
    return None if place is None else complete[place]


def capacity_sentence(engine: str, workload: str, found: Capacity, *, level: ServiceLevel, target: float) -> str:
    """The finding in one sentence."""
    held = f"{format_quantity(target, unit='ratio')} of the requests meet {level_text(level)}"
    rate, low, high = (format_quantity(value, unit="req/s") for value in (found.rate, found.low, found.high))
    if found.rate is not None:
        return f"{engine} takes {rate} of {workload} [{low.removesuffix(' req/s')}, {high}] while {held}"
    if math.isinf(found.high):
        return f"{engine} takes {low} of {workload} and more while {held}: the search ended before its capacity"
    return f"{engine} takes no {workload} at all, down to {high}, while {held}"


def capacity_section(
    engine: str,
    workload: str,
    found: Capacity,
    *,
    curve: Sequence[CurvePoint],
    level: ServiceLevel,
    target: float,
    description: str,
    warnings: Sequence[str] = (),
    kind: Kind = "",
) -> Section:
    """What is shown of the search for the capacity of ``engine`` under ``workload``.

    Args:
        engine: Its name.
        workload: Its name.
        found: The capacity.
        curve: Probes and sweep, by rate.
        level: What had to be met.
        target: By which share of the requests.
        description: What was sent, in one line.
        warnings: What the search ran into.
        kind: Colours the sentences.
    """
    bend = knee_of(curve)
    sentences = [capacity_sentence(engine, workload, found, level=level, target=target)]
    if bend is not None:
        sentences.append(
            f"the knee of its curve is at {format_quantity(bend.rate, unit='req/s')}: "
            f"{format_quantity(bend.output_throughput, unit='tok/s')} at an E2EL of "
            f"{format_quantity(bend.e2el_mean, unit='s')}, TTFT {format_quantity(bend.ttft_mean, unit='s')}"
        )
    return Section(
        id=section_id("capacity", engine, workload),
        title=f"How much {engine} can take: {workload}",
        sentences=tuple(sentences),
        tables=(_loads(curve, bend),),
        lines=_plots(curve, found, bend, level),
        notes=(
            f"Sent: {description}. Arrivals are Poisson; latencies count from the intended send.",
            (
                "The interval is 95 %, from all probes together: one launch, so what changes from launch to launch is "
                "not covered. The knee is where throughput / E2EL is largest."
            ),
            *warnings,
        ),
        kind=kind,
    )


_COLUMNS: tuple[tuple[str, Callable[[CurvePoint], float | None], str], ...] = (
    ("throughput", lambda p: p.request_throughput, "req/s"),
    ("output", lambda p: p.output_throughput, "tok/s"),
    ("TTFT mean", lambda p: p.ttft_mean, "s"),
    ("TPOT mean", lambda p: p.tpot_mean, "s"),
    ("E2EL mean", lambda p: p.e2el_mean, "s"),
)


def _loads(curve: Sequence[CurvePoint], bend: CurvePoint | None) -> Table:
    head = ("rate", "requests", "met the level", *(name for name, _, _ in _COLUMNS), "")
    rows = tuple(
        (
            Cell(text=format_quantity(p.rate, unit="req/s"), value=p.rate),
            str(p.requests),
            Cell(text=f"{p.met:.1%}", value=p.met),
            *(Cell(text=format_quantity(of(p), unit=unit), value=of(p)) for _, of, unit in _COLUMNS),
            "knee" if p is bend else "",
        )
        for p in curve
    )
    return Table(title="Loads", head=head, rows=rows, right=head[:-1])


def _plots(
    curve: Sequence[CurvePoint], found: Capacity, bend: CurvePoint | None, level: ServiceLevel
) -> tuple[LinePlot, ...]:
    """Latency over throughput, one plot for each latency; markers are the capacity, the knee and the limit."""
    plots = []
    for name, seen, limit in (
        ("TTFT", [p.ttft_mean for p in curve], level.ttft_s),
        ("TPOT", [p.tpot_mean for p in curve], level.tpot_s),
        ("E2EL", [p.e2el_mean for p in curve], level.e2el_s),
    ):
        points = [(p.rate, value) for p, value in zip(curve, seen, strict=True) if value is not None]
        if len(points) < 2:
            continue
        markers = [Marker(text="knee", x=bend.rate)] if bend is not None else []
        if found.rate is not None:
            markers.append(Marker(text="capacity", x=found.rate))
        if limit is not None:
            markers.append(Marker(text=f"{name} limit", y=limit, kind="fail"))
        line = Line(name=f"{name} mean", x=tuple(x for x, _ in points), y=tuple(y for _, y in points), dots=True)
        plots.append(
            LinePlot(
                title=f"{name} over the arrival rate",
                lines=(line,),
                x_unit="req/s",
                x_label="arrival rate",
                y_unit="s",
                y_label=f"{name} mean",
                markers=tuple(markers),
            )
        )
    throughput = [(p.output_throughput, p.e2el_mean) for p in curve if p.output_throughput and p.e2el_mean]
    if len(throughput) >= 2:
        plots.insert(0, _throughput_latency(throughput, bend))
    return tuple(plots)


def _throughput_latency(points: Sequence[tuple[float, float]], bend: CurvePoint | None) -> LinePlot:
    """In order of the rate: beyond saturation the curve may turn back, and that is worth seeing."""
    marker = (Marker(text="knee", x=bend.output_throughput),) if bend and bend.output_throughput else ()
    return LinePlot(
        title="Throughput-latency curve",
        lines=(Line(name="E2EL mean", x=tuple(x for x, _ in points), y=tuple(y for _, y in points), dots=True),),
        x_unit="tok/s",
        x_label="output throughput",
        y_unit="s",
        y_label="E2EL mean",
        markers=marker,
    )
