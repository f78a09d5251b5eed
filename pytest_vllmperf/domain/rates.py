"""Rates over the window of a load run: throughput, its best second, goodput."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_vllmperf.domain.records import LoadRun, RequestRecord, latency_s
from pytest_vllmperf.domain.stats import peak_window_rate
from pytest_vllmperf.domain.workload import ServiceLevel

__all__ = ["arrival_rate", "goodput", "peak_output_throughput", "service_uses", "throughput", "window_s"]

_NS = 1e-9


def window_s(run: LoadRun, done: Sequence[RequestRecord]) -> float | None:
    """Seconds from the first dispatch to the last token of a completed answer."""
    if not done:
        return None
    first = min(r.dispatched_ns for r in run.records)
    return (max(r.event_ns[-1] for r in done) - first) * _NS


def throughput(done: Sequence[RequestRecord], window_s: float | None) -> tuple[dict[str, float | None], str]:
    """Throughputs over the window; token rates are None unless every answer carries usage."""
    if not window_s:
        return dict.fromkeys(("output_throughput", "total_throughput", "request_throughput")), "no completed request"
    outputs = [r.output_tokens for r in done if r.output_tokens is not None]
    inputs = [r.input_tokens for r in done if r.input_tokens is not None]
    output = sum(outputs) / window_s if len(outputs) == len(done) else None
    total = (sum(outputs) + sum(inputs)) / window_s if len(outputs) == len(inputs) == len(done) else None
    rates = {"output_throughput": output, "total_throughput": total, "request_throughput": len(done) / window_s}
    return rates, "the server sent no usage"


def peak_output_throughput(done: Sequence[RequestRecord]) -> tuple[float | None, str]:
    """The best second. A request whose events carry unknown shares of its tokens counts them evenly spread."""
    if any(r.output_tokens is None for r in done):
        return None, "the server sent no usage"
    at = [t for r in done for t in r.event_ns]
    amounts = [n for r in done for n in r.event_tokens or _spread(r)]
    return peak_window_rate(at, amounts), "shorter than one 1 s window" if done else "no completed request"


def _spread(record: RequestRecord) -> list[float]:
    return [(record.output_tokens or 0) / len(record.event_ns)] * len(record.event_ns)


def goodput(
    done: Sequence[RequestRecord], level: ServiceLevel | None, window_s: float | None, *, open_loop: bool
) -> tuple[float | None, str]:
    """Requests per second that met every stated level, or why that cannot be said."""
    if level is None:
        return None, "the workload states no service level"
    if not window_s:
        return None, "no completed request"
    return sum(_meets(r, level, open_loop=open_loop) for r in done) / window_s, ""


def _meets(record: RequestRecord, level: ServiceLevel, *, open_loop: bool) -> bool:
    """True when a request met every latency asked of it; one that cannot be computed is not met."""
    return _use(record, level, open_loop=open_loop) <= 1


def service_uses(run: LoadRun, level: ServiceLevel, *, open_loop: bool) -> tuple[float, ...]:
    """What each request took of the service level, in the order of sending: the largest of latency / limit.

    Above 1 it missed the level; infinite where it failed, or a latency asked about cannot be computed.
    """
    sent = sorted(run.records, key=lambda record: record.intended_ns)
    uses = [_use(r, level, open_loop=open_loop) if r.succeeded else math.inf for r in sent]
    return (*uses, *([math.inf] * run.abandoned))


def arrival_rate(run: LoadRun) -> float | None:
    """Requests per second that were due in an open loop; None with fewer than two, or all at once."""
    due = [record.intended_ns for record in run.records]
    window = (max(due) - min(due)) * _NS if due else 0.0
    return (len(due) - 1) / window if window else None


def _use(record: RequestRecord, level: ServiceLevel, *, open_loop: bool) -> float:
    asked = {"ttft": level.ttft_s, "tpot": level.tpot_s, "e2el": level.e2el_s}
    largest = 0.0
    for name, limit in asked.items():
        if limit is None:
            continue
        seen = latency_s(record, name, open_loop=open_loop)
        largest = max(largest, math.inf if seen is None else seen / limit)
    return largest
