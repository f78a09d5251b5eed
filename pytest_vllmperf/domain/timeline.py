"""What happened when: one load run as short series over time, and its slowest requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.records import LoadRun, MemorySample, RequestRecord, ServerCounters

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RequestSpan", "Series", "Timeline", "timeline"]

_NS = 1e-9
_MOST_BINS = 80
"""More could not be told apart in a plot of a few hundred pixels."""
_BIN_WIDTHS_S = tuple(factor * 10.0**power for power in range(-2, 6) for factor in (1, 2, 5))
_SLOWEST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values over time, in a base unit. ``at_s`` counts seconds from the first dispatch.

    ``bin_s`` is set where each value stands for the time from its ``at_s`` on, as for rates, and None for samples.
    ``ceiling`` is the most there could be, None where unknown or without one.
    """

    unit: str
    at_s: tuple[float, ...]
    values: tuple[float, ...]
    bin_s: float | None = None
    ceiling: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpan:
    """One request as the client saw it, in seconds from the first dispatch of the run.

    From ``intended_s`` to ``sent_s`` it waited in the client; until ``first_token_s`` in the server, in its queue or
    in prefill; from there until ``ended_s`` it was decoded. ``first_token_s`` is None where no token came.
    """

    index: int
    outcome: str
    intended_s: float
    sent_s: float
    first_token_s: float | None
    ended_s: float
    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A load run over time.

    Args:
        duration_s: From the first dispatch to the end of the last request.
        series: By name: ``output_throughput``, ``concurrency``, ``queue`` (requests waiting in the server),
            ``kv_cache_usage``, ``host_memory``, ``device_memory``, and whatever else was sampled (``device_power``,
            ``device_clock``).
        slowest: The requests that took longest from intended send to end, longest first; failed ones too.
        steady_s: Start and end of the steady window, None where there is none.
    """

    duration_s: float
    series: Mapping[str, Series]
    slowest: tuple[RequestSpan, ...]
    steady_s: tuple[float, float] | None = None


def timeline(
    run: LoadRun,
    *,
    memory: Sequence[MemorySample] = (),
    counters: Sequence[ServerCounters | None] = (),
    device_memory_bytes: int | None = None,
    steady_ns: tuple[int, int] | None = None,
    sampled: Mapping[str, tuple[str, Sequence[tuple[int, float | None]]]] | None = None,
) -> Timeline | None:
    """Condense a run; None when nothing was sent.

    ``device_memory_bytes`` is what the engine's GPUs have in all, for the ceiling; ``steady_ns`` the steady window on
    the monotonic clock; ``sampled`` gives further samples by name: their unit, and pairs of monotonic nanoseconds and
    value.
    """
    if not run.records:
        return None
    origin = min(r.dispatched_ns for r in run.records)
    duration = max(max(r.ended_ns for r in run.records) - origin, 1) * _NS
    width = next((w for w in _BIN_WIDTHS_S if duration <= w * _MOST_BINS), duration / _MOST_BINS)
    import numpy as np

    edges = np.arange(int(np.ceil(duration / width)) + 1) * width
    known = {
        "host_memory": _memory([(s.at_ns, s.host_bytes) for s in memory], origin, width, None),
        "device_memory": _memory([(s.at_ns, s.device_bytes) for s in memory], origin, width, device_memory_bytes),
        "queue": _counted([(c.at_ns, c.requests_waiting) for c in counters if c is not None], origin, width),
        "kv_cache_usage": _samples([(c.at_ns, c.kv_cache_usage) for c in counters if c is not None], origin, width),
    }
    return Timeline(
        duration_s=duration,
        series={
            "output_throughput": _throughput(run.records, origin, edges),
            "concurrency": _concurrency(run.records, origin, edges),
            **{name: series for name, series in known.items() if series is not None},
            **{
                name: replace(series, unit=unit)
                for name, (unit, pairs) in (sampled or {}).items()
                if (series := _samples(pairs, origin, width)) is not None
            },
        },
        slowest=_slowest(run.records, origin),
        steady_s=None if steady_ns is None else ((steady_ns[0] - origin) * _NS, (steady_ns[1] - origin) * _NS),
    )


def _throughput(records: Sequence[RequestRecord], origin: int, edges: np.ndarray) -> Series:
    """Output tokens by their arrival, those of failed requests too: the server made them.

    Where the server did not say how many tokens an event carried, a request's tokens are spread evenly over its
    events, and without usage each event counts as one.
    """
    at: list[int] = []
    amounts: list[float] = []
    for record in records:
        at += record.event_ns
        even = 1.0 if record.output_tokens is None else record.output_tokens / max(1, len(record.event_ns))
        amounts += record.event_tokens or [even] * len(record.event_ns)
    import numpy as np

    seconds = np.minimum((np.asarray(at, dtype=np.int64) - origin) * _NS, edges[-1])  # by rounding, the last is beyond
    tokens, _ = np.histogram(seconds, bins=edges, weights=np.asarray(amounts, dtype=np.float64))
    return _binned(tokens, edges, "tok/s")


def _concurrency(records: Sequence[RequestRecord], origin: int, edges: np.ndarray) -> Series:
    """The mean number of requests in flight in each bin, from dispatch to end."""
    import numpy as np

    starts = (np.asarray([r.dispatched_ns for r in records], dtype=np.int64) - origin) * _NS
    lasted = (np.asarray([r.ended_ns for r in records], dtype=np.int64) - origin) * _NS - starts
    until = np.asarray([np.clip(edge - starts, 0.0, lasted).sum() for edge in edges])
    return _binned(np.diff(until), edges, "requests")


def _binned(amounts: np.ndarray, edges: np.ndarray, unit: str) -> Series:
    """Amounts of each bin as rates."""
    width = float(edges[1] - edges[0])
    return Series(unit=unit, at_s=_rounded(edges[:-1]), values=_rounded(amounts / width), bin_s=width)


def _memory(pairs: Sequence[tuple[int, int | None]], origin: int, width: float, ceiling: int | None) -> Series | None:
    series = _samples(pairs, origin, width)
    if series is None:
        return None
    return Series(
        unit="B",
        at_s=series.at_s,
        values=tuple(float(round(v)) for v in series.values),
        ceiling=None if ceiling is None else float(ceiling),
    )


def _counted(pairs: Sequence[tuple[int, int | None]], origin: int, width: float) -> Series | None:
    """Requests; a queue that was always empty is left out."""
    series = _samples(pairs, origin, width)
    if series is None or not any(series.values):
        return None
    return Series(unit="requests", at_s=series.at_s, values=series.values)


def _samples(pairs: Sequence[tuple[int, float | None]], origin: int, width: float) -> Series | None:
    """What was sampled, of each bin's samples the largest, which is the one that limits and peaks are about."""
    largest: dict[int, tuple[float, float]] = {}
    for at_ns, value in pairs:
        if value is not None:
            at = (at_ns - origin) * _NS
            place = int(at // width)
            if place not in largest or value > largest[place][1]:
                largest[place] = (at, float(value))
    if not largest:
        return None
    kept = [largest[place] for place in sorted(largest)]
    return Series(unit="ratio", at_s=_rounded([at for at, _ in kept]), values=_rounded([value for _, value in kept]))


def _slowest(records: Sequence[RequestRecord], origin: int) -> tuple[RequestSpan, ...]:
    slowest = sorted(records, key=lambda r: (r.intended_ns - r.ended_ns, r.index))[:_SLOWEST]
    return tuple(_span(record, origin) for record in slowest)


def _span(record: RequestRecord, origin: int) -> RequestSpan:
    def seconds(at_ns: int) -> float:
        return round((at_ns - origin) * _NS, 6)

    return RequestSpan(
        index=record.index,
        outcome=str(record.outcome),
        intended_s=seconds(record.intended_ns),
        sent_s=seconds(record.dispatched_ns if record.written_ns is None else record.written_ns),
        first_token_s=seconds(record.event_ns[0]) if record.event_ns else None,
        ended_s=seconds(record.event_ns[-1] if record.succeeded else record.ended_ns),
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
    )


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Six significant digits: what is plotted needs no more, and a report holds many."""
    return tuple(float(f"{value:.6g}") for value in values)
