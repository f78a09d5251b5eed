"""When requests are meant to be sent. Pure: seeded, absolute, computed before the clock starts."""

from __future__ import annotations

import itertools
import math
import random

from pytest_vllmperf.domain.workload import Workload

__all__ = ["arrival_offsets_ns"]


def arrival_offsets_ns(workload: Workload, *, count: int, seed: int) -> tuple[int, ...] | None:
    """Offsets from the start at which an open loop's ``count`` requests are sent; None in a closed loop.

    The first request is due at 0; the gaps are gamma distributed with shape ``burstiness`` and mean
    ``1 / request_rate``, as in ``vllm bench serve`` (shape 1 is Poisson; infinite is constant). Offsets are
    never re-anchored: a stall of the server or of the client delays no later request.
    """
    rate = workload.request_rate
    if rate is None:
        return None
    shape = workload.burstiness
    if math.isinf(shape):
        return tuple(round(i * 1e9 / rate) for i in range(count))
    draw = random.Random(f"{seed}:arrivals")  # noqa: S311 - arrivals, not secrets
    scale_s = 1.0 / (rate * shape)
    gaps = (draw.gammavariate(shape, scale_s) for _ in range(count - 1))
    return tuple(round(at * 1e9) for at in itertools.accumulate(gaps, initial=0.0))
