"""When requests are meant to be sent. Pure: seeded, absolute, computed before the clock starts."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.questions import Question
from pytest_vllmperf.load.trace_files import TraceEntry

__all__ = ["arrival_offsets_ns", "schedule_hash", "slot_openings_ns"]

_NS = 1e9


def arrival_offsets_ns(
    workload: Workload, *, count: int, seed: int, trace: Sequence[TraceEntry] | None = None
) -> tuple[int, ...] | None:
    """Offsets from the start at which an open loop's ``count`` requests are sent; None in a closed loop.

    The first request is due at 0; the gaps are gamma distributed with shape ``burstiness`` and mean
    ``1 / request_rate``, as in ``vllm bench serve`` (shape 1 is Poisson; infinite is constant). Bursts of
    ``burst_size`` arrive together. Within ``ramp_s`` the rate grows evenly from 0. A trace says itself when. Offsets
    are never re-anchored: a stall of the server or of the client delays no later request.
    """
    if trace is not None:
        return tuple(entry.at_ns for entry in trace[:count])
    if workload.request_rate is None:
        return None
    size = workload.burst_size
    groups = -(-count // size)
    at_s = [_ramped(at, workload.ramp_s) for at in itertools.islice(_steady_s(workload, seed), groups)]
    return tuple(round(at_s[place // size] * _NS) for place in range(count))


def _steady_s(workload: Workload, seed: int) -> Iterator[float]:
    """Arrivals of (groups of) requests at the full rate, in seconds."""
    assert workload.request_rate is not None
    rate = workload.request_rate / workload.burst_size
    shape = workload.burstiness
    if math.isinf(shape):
        return (place / rate for place in itertools.count())
    draw = random.Random(f"{seed}:arrivals")  # noqa: S311 - arrivals, not secrets
    scale_s = 1.0 / (rate * shape)
    gaps = (draw.gammavariate(shape, scale_s) for _ in itertools.count())
    return itertools.accumulate(gaps, initial=0.0)


def _ramped(at_s: float, ramp_s: float) -> float:
    """The moment at which a rate that grows evenly over ``ramp_s`` has sent as many as the full rate by ``at_s``.

    With rate r·t/ramp the count after t is r·t²/(2·ramp), which equals r·at at t = √(2·ramp·at); after the ramp, which
    has sent half of what the full rate would have, everything is ramp/2 later.
    """
    if ramp_s and at_s < ramp_s / 2:
        return math.sqrt(2 * ramp_s * at_s)
    return at_s + ramp_s / 2


def slot_openings_ns(*, slots: int, ramp_s: float) -> tuple[int, ...]:
    """When each of a closed loop's slots opens: evenly over the ramp, the first at once."""
    return tuple(round(place * ramp_s / slots * _NS) for place in range(slots))


def schedule_hash(offsets_ns: Sequence[int] | None, asked: Iterable[Question]) -> str:
    """Names what is sent and when: equal for equal prompts, lengths and arrivals, on whatever engine and machine."""
    digest = hashlib.sha256()
    encode = msgspec.msgpack.encode
    digest.update(encode(offsets_ns))
    for question in asked:
        digest.update(encode((question.turns, question.output_tokens, question.follows)))
    return digest.hexdigest()[:16]
