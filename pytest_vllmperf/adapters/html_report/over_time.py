"""A load run over time, as the page shows it: throughput and requests in flight, memory, the slowest requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.html_report.axes import Axis, Tick, axis_ticks
from pytest_vllmperf.adapters.html_report.lines import LINE_WIDTH, LineFigure, line_figure
from pytest_vllmperf.domain.section import Band, Line, LinePlot, Marker
from pytest_vllmperf.domain.units import format_quantity

if TYPE_CHECKING:
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.timeline import RequestSpan, Series, Timeline

__all__ = ["Phase", "Waterfall", "phases", "time_figures", "waterfall"]

_TITLES = {
    "output_throughput": "output tokens per second",
    "concurrency": "requests in flight",
    "queue": "requests waiting in the server",
    "kv_cache_usage": "KV cache in use",
    "device_memory": "device memory",
    "host_memory": "host memory",
    "device_power": "device power",
    "device_clock": "device clock, of its highest",
    "device_temperature": "device temperature",
}
"""Shown in this order, others after them under their own name."""
_ROW = 9
"""Units from one request of the waterfall to the next."""
_WAITED = 0.001
"""A wait in the client below this share of the whole axis is not drawn: it could not be seen."""


def time_figures(timeline: Timeline, *, host_memory_bytes: int | None) -> tuple[LineFigure, ...]:
    """One picture for each series, known ones first; ``host_memory_bytes`` is the machine's, for the ceiling."""
    order = {name: place for place, name in enumerate(_TITLES)}
    names = sorted(timeline.series, key=lambda name: order.get(name, len(order)))
    drawn = (_figure(name, timeline.series[name], timeline, host_memory_bytes) for name in names)
    return tuple(figure for figure in drawn if figure is not None)


def _figure(name: str, series: Series, timeline: Timeline, host_memory_bytes: int | None) -> LineFigure | None:
    ceiling = series.ceiling
    if ceiling is None and name == "host_memory" and host_memory_bytes is not None:
        ceiling = float(host_memory_bytes)
    x, y = series.at_s, series.values
    if series.bin_s is None:  # the last sample holds until the end
        x, y = (*(max(0.0, at) for at in x), timeline.duration_s), (*y, *y[-1:])
    marks = () if ceiling is None else (Marker(text=f"{format_quantity(ceiling, unit=series.unit)} in all", y=ceiling),)
    steady = timeline.steady_s
    title = _TITLES.get(name, name.replace("_", " "))
    return line_figure(
        LinePlot(
            title=title,
            lines=(Line(name=title, x=x, y=y, steps=series.bin_s is not None),),
            y_unit=series.unit,
            markers=marks,
            bands=() if steady is None else (Band(start=steady[0], end=steady[1], text="steady window"),),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """The slowest requests under each other, each phase as one SVG path of horizontal strokes.

    ``labels`` holds the vertical place and the text of each row; ``failed`` marks the ends of failed requests.
    """

    height: int
    waiting: str
    first: str
    decoding: str
    failed: str
    labels: tuple[tuple[int, str], ...]
    ticks: tuple[Tick, ...]
    spoken: str


def waterfall(timeline: Timeline) -> Waterfall | None:
    """The geometry of the slowest requests, longest on top; None when there are none."""
    spans = timeline.slowest
    if not spans:
        return None
    axis = Axis(low=min(0.0, *(s.intended_s for s in spans)), high=max(timeline.duration_s, 1e-9))
    rows = list(enumerate(spans))
    return Waterfall(
        height=_ROW * len(spans) + 4,
        waiting="".join(
            _stroke(i, s.intended_s, s.sent_s, axis)
            for i, s in rows
            if s.sent_s - s.intended_s > _WAITED * (axis.high - axis.low)
        ),
        first="".join(
            _stroke(i, s.sent_s, s.ended_s if s.first_token_s is None else s.first_token_s, axis) for i, s in rows
        ),
        decoding="".join(_stroke(i, s.first_token_s, s.ended_s, axis) for i, s in rows if s.first_token_s is not None),
        failed="".join(_cross(i, s.ended_s, axis) for i, s in rows if s.outcome != "success"),
        labels=tuple((_ROW * i + 8, f"#{s.index}") for i, s in rows),
        ticks=tuple(
            Tick(x=round(LINE_WIDTH / 2 * axis.share(x)), text=format_quantity(x, unit="s"))
            for x in axis_ticks(axis, "s")
        ),
        spoken=f"The {len(spans)} slowest requests over time; " + "; ".join(_told(s) for s in spans[:3]),
    )


def _stroke(row: int, start: float, end: float, axis: Axis) -> str:
    left, right = (LINE_WIDTH / 2 * axis.share(x) for x in (start, end))
    return f"M{left:.4g} {_ROW * row + 5}h{max(right - left, 0.4):.4g}"


def _cross(row: int, end: float, axis: Axis) -> str:
    return f"M{LINE_WIDTH / 2 * axis.share(end) - 3:.4g} {_ROW * row + 2}l6 6m0 -6l-6 6"


def _told(span: RequestSpan) -> str:
    took = format_quantity(span.ended_s - span.intended_s, unit="s")
    if span.first_token_s is None:
        return f"request {span.index}: {span.outcome} after {took}"
    first = format_quantity(span.first_token_s - span.sent_s, unit="s")
    return f"request {span.index}: {took}, of which {first} until the first token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the mean request's time; ``left`` and ``width`` are in units of 300."""

    name: str
    text: str
    left: int
    width: int
    series: int


_PHASES = ("waiting in the client", "until the first token (queue, prefill)", "decoding")


def phases(summary: Summary) -> Iterator[tuple[str, tuple[Phase, ...]]]:
    """Ways to divide a mean request's time, each with a title; none without the latencies it takes."""
    means = [_mean(summary, name) for name in ("ttft", "service_ttft", "service_e2el")]
    if any(mean is None for mean in means):
        return
    ttft, service_ttft, service_e2el = (mean or 0.0 for mean in means)
    parts = (max(0.0, ttft - service_ttft), service_ttft, max(0.0, service_e2el - service_ttft))
    yield "The mean request, as the client saw it", tuple(_stacked(dict(zip(_PHASES, parts, strict=True))))
    if server := _until_first_token(summary.facts):
        yield "Until its first token: engine, API server, client", tuple(_stacked(server))


def _until_first_token(facts: Mapping[str, object]) -> dict[str, float]:
    """The mean time to the first token by who took it, from the server's own histograms; empty where it has none."""
    engine, queue, prefill = (_seconds(facts, name) for name in ("engine_ttft_s", "queue_s", "prefill_s"))
    if engine is None:
        return {}
    known = {"engine: queue": queue or 0.0, "engine: prefill": prefill or 0.0}
    rest = max(0.0, engine - sum(known.values()))
    return {
        **known,
        "engine: other": rest,
        "API server": max(0.0, _seconds(facts, "api_server_ttft_s") or 0.0),
        "client": max(0.0, _seconds(facts, "client_lag_s") or 0.0),
    }


def _seconds(facts: Mapping[str, object], name: str) -> float | None:
    value = facts.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _mean(summary: Summary, name: str) -> float | None:
    found = summary.metrics.get(f"{name}_mean")
    return None if found is None else found.value


def _stacked(parts: Mapping[str, float]) -> Iterator[Phase]:
    whole = sum(parts.values())
    before = 0.0
    for series, (name, seconds) in enumerate(parts.items()):
        share = seconds / whole if whole else 0.0
        if share > _WAITED:
            text = f"{format_quantity(seconds, unit='s')} ({format_quantity(share, unit='ratio', digits=2)})"
            yield Phase(name=name, text=text, left=round(300 * before), width=max(1, round(300 * share)), series=series)
        before += share
