"""How a load process fared: its CPU time, its waiting for a core, its delay in sending and in reading."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from pytest_vllmperf.domain.records import ClientHealth
from pytest_vllmperf.load.alarm import Attention, LagProbe, run_queue_wait_ns
from pytest_vllmperf.load.exchange import Exchange

__all__ = ["HealthClock", "lag_p99_ns", "percentile_ns"]


class HealthClock:
    """Started right before the load and read right after it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, attention: Attention | None = None) -> None:
        self._loop_name = type(loop).__module__.partition(".")[0]
        self._probe = LagProbe(loop, attention)
        self._waited_ns = run_queue_wait_ns()
        self._cpu_ns = time.process_time_ns()
        self._wall_ns = time.monotonic_ns()

    def read(self, exchanges: Sequence[Exchange], *, kernel_stamps: bool = False) -> ClientHealth:
        """What was spent since the start. ``exchanges`` are those that were sent."""
        wall_ns = time.monotonic_ns() - self._wall_ns
        cpu_ns = time.process_time_ns() - self._cpu_ns
        waited_ns = run_queue_wait_ns()
        self._probe.close()
        lags = sorted(self._probe.lags_ns)
        dispatch = sorted(e.dispatched_ns - e.due_ns for e in exchanges)
        return ClientHealth(
            wall_ns=wall_ns,
            cpu_ns=cpu_ns,
            run_queue_wait_ns=None if waited_ns is None or self._waited_ns is None else waited_ns - self._waited_ns,
            dispatch_lag_p99_ns=percentile_ns(dispatch, 99),
            dispatch_lag_mean_ns=sum(dispatch) // len(dispatch) if dispatch else 0,
            loop=self._loop_name,
            loop_lag_samples=len(lags),
            loop_lag_mean_ns=sum(lags) // len(lags) if lags else None,
            loop_lag_p50_ns=percentile_ns(lags, 50) if lags else None,
            loop_lag_p99_ns=percentile_ns(lags, 99) if lags else None,
            busiest_share=cpu_ns / max(1, wall_ns),
            kernel_stamps=kernel_stamps,
        )


def lag_p99_ns(lags_ns: Sequence[int]) -> int:
    """The 99th percentile of lags in any order."""
    return percentile_ns(sorted(lags_ns), 99)


def percentile_ns(ordered: Sequence[int], percent: int) -> int:
    """A percentile, as the smallest value that so many in a hundred do not exceed; 0 of nothing."""
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0
