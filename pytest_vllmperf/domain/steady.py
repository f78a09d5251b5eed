"""The steady part of a load run: after everything has got going, before it thins out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.records import LoadRun, RequestRecord
from pytest_vllmperf.domain.workload import Workload

__all__ = ["SteadyWindow", "steady_window"]

_NS = 1e-9
_LEAST_SHARE = 0.2
"""A window shorter than this part of the run says less than the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyWindow:
    """From ``start_ns`` to ``end_ns``; ``records`` were sent in it."""

    start_ns: int
    end_ns: int
    records: tuple[RequestRecord, ...]
    output_throughput: float | None

    @property
    def duration_s(self) -> float:
        """How long it is."""
        return (self.end_ns - self.start_ns) * _NS


def steady_window(run: LoadRun, workload: Workload, done: Sequence[RequestRecord]) -> SteadyWindow | None:
    """The steady window, None where the run has none worth the name.

    A closed loop is steady from the moment each of its slots has had its first token (the opening wave is over) to
    the moment the last request is sent (from then on slots stay empty). An open loop is, once its ramp and one mean
    answer are over, until its last arrival.
    """
    if len(done) < 2:
        return None
    first = min(r.intended_ns for r in run.records)
    if workload.open_loop:
        mean_ns = sum(r.event_ns[-1] - r.intended_ns for r in done) // len(done)
        start = first + round(workload.ramp_s / _NS) + mean_ns
        end = max(r.intended_ns for r in run.records)
    else:
        slots = workload.max_concurrency or len(done)
        opening = sorted(done, key=lambda r: r.dispatched_ns)[:slots]
        start = max(r.event_ns[0] for r in opening)
        end = max(r.dispatched_ns for r in run.records)
    whole = max(r.event_ns[-1] for r in done) - first
    if end - start < _LEAST_SHARE * whole:
        return None
    inside = tuple(r for r in done if start <= r.dispatched_ns <= end)
    tokens = _tokens_within(done, start, end)
    return SteadyWindow(
        start_ns=start,
        end_ns=end,
        records=inside,
        output_throughput=None if tokens is None else tokens / ((end - start) * _NS),
    )


def _tokens_within(done: Sequence[RequestRecord], start_ns: int, end_ns: int) -> float | None:
    """Output tokens that arrived in the window; where events are fewer than tokens, spread evenly over them."""
    total = 0.0
    for record in done:
        if record.output_tokens is None:
            return None
        even = record.output_tokens / len(record.event_ns)
        shares = record.event_tokens or (even,) * len(record.event_ns)
        total += sum(share for at, share in zip(record.event_ns, shares, strict=True) if start_ns <= at <= end_ns)
    return total
