"""The latencies of a load run: one sample for each request, gap or token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pytest_vllmperf.domain.records import RequestRecord, latency_s

__all__ = ["distributions"]

_NS = 1e-9
_WHOLE = ("ttft", "service_ttft", "tpot", "e2el", "service_e2el")
_OTHERS = ("ttfb", "answer_ttft", "itl", "itl_per_token", "per_request_throughput")
_STEADY = ("ttft", "tpot")


def distributions(
    done: Sequence[RequestRecord], *, open_loop: bool, steady: Sequence[RequestRecord] = ()
) -> dict[str, list[float]]:
    """Samples by distribution, in base units. ``steady`` are the requests of the steady window."""
    values: dict[str, list[float]] = {name: [] for name in (*_WHOLE, *_OTHERS)}
    for record in done:
        for name in _WHOLE:
            _add(values[name], latency_s(record, name, open_loop=open_loop))
        written = record.written_ns if record.written_ns is not None else record.dispatched_ns
        if record.first_byte_ns is not None:
            values["ttfb"].append((record.first_byte_ns - written) * _NS)
        if record.first_answer_ns is not None:
            origin = record.intended_ns if open_loop else written
            values["answer_ttft"].append((record.first_answer_ns - origin) * _NS)
        values["itl"] += [(b - a) * _NS for a, b in pairwise(record.event_ns)]
        values["itl_per_token"] += _per_token(record)
        last = record.event_ns[-1]
        if record.output_tokens and last > written:
            values["per_request_throughput"].append(record.output_tokens / ((last - written) * _NS))
    for name in _STEADY:
        values[f"steady_{name}"] = []
        for record in steady:
            _add(values[f"steady_{name}"], latency_s(record, name, open_loop=open_loop))
    return values


def _add(samples: list[float], value: float | None) -> None:
    if value is not None:
        samples.append(value)


def _per_token(record: RequestRecord) -> Iterator[float]:
    """Each gap shared among the tokens of the event that ended it, one sample for each token."""
    for (a, b), tokens in zip(pairwise(record.event_ns), (record.event_tokens or ())[1:], strict=False):
        yield from ((b - a) * _NS / tokens for _ in range(tokens))
