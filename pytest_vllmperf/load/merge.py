"""What several load processes observed, as one run. Their stamps share the monotonic clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_vllmperf.domain.records import ClientHealth, LoadRun, RequestRecord

__all__ = ["merged"]


def merged(parts: Sequence[LoadRun], records: Iterable[RequestRecord]) -> LoadRun:
    """One run of all ``records``; of the processes' health the worst counts, of CPU time the sum."""
    first = parts[0]
    ordered = tuple(sorted(records, key=lambda record: record.index))
    return replace(
        first,
        records=ordered,
        started_ns=min(part.started_ns for part in parts),
        ended_ns=max(part.ended_ns for part in parts),
        client=_health([part.client for part in parts], _shared_reads(ordered)),
        stopped=next((part.stopped for part in parts if part.stopped), None),
        unsent=sum(part.unsent for part in parts),
        abandoned=sum(part.abandoned for part in parts),
    )


def _health(parts: Sequence[ClientHealth], shared_reads: float) -> ClientHealth:
    return replace(
        parts[0],
        wall_ns=max(part.wall_ns for part in parts),
        cpu_ns=sum(part.cpu_ns for part in parts),
        run_queue_wait_ns=_worst(part.run_queue_wait_ns for part in parts),
        dispatch_lag_p99_ns=max(part.dispatch_lag_p99_ns for part in parts),
        dispatch_lag_mean_ns=max(part.dispatch_lag_mean_ns for part in parts),
        loop_lag_samples=min(part.loop_lag_samples for part in parts),
        loop_lag_mean_ns=_worst(part.loop_lag_mean_ns for part in parts),
        loop_lag_p50_ns=_worst(part.loop_lag_p50_ns for part in parts),
        loop_lag_p99_ns=_worst(part.loop_lag_p99_ns for part in parts),
        workers=len(parts),
        busiest_share=max(part.busiest_share for part in parts),
        shared_reads=shared_reads,
        kernel_stamps=all(part.kernel_stamps for part in parts),
    )


def _worst(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known, default=None)


def _shared_reads(records: Sequence[RequestRecord]) -> float:
    """Share of token events that have the very stamp of the event before them: they came in one read."""
    events = sum(len(record.event_ns) for record in records)
    reads = sum(len(set(record.event_ns)) for record in records)
    return 1 - reads / events if events else 0.0
