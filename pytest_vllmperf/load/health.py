"""How the load process itself fared: its CPU time, its waiting for a core, its delay in sending."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pytest_vllmperf.domain.records import ClientHealth
from pytest_vllmperf.load.exchange import Exchange

__all__ = ["HealthClock", "lag_p99_ns"]

_SCHEDSTAT = Path("/proc/self/schedstat")


class HealthClock:
    """Started right before the load and read right after it."""

    def __init__(self) -> None:
        self._waited_ns = _run_queue_wait_ns()
        self._cpu_ns = time.process_time_ns()
        self._wall_ns = time.monotonic_ns()

    def read(self, exchanges: Sequence[Exchange], *, loop: str) -> ClientHealth:
        """What was spent since the start."""
        waited_ns = _run_queue_wait_ns()
        return ClientHealth(
            wall_ns=time.monotonic_ns() - self._wall_ns,
            cpu_ns=time.process_time_ns() - self._cpu_ns,
            run_queue_wait_ns=None if waited_ns is None or self._waited_ns is None else waited_ns - self._waited_ns,
            dispatch_lag_p99_ns=lag_p99_ns([e.dispatched_ns - e.due_ns for e in exchanges]),
            loop=loop,
        )


def lag_p99_ns(lags_ns: Sequence[int]) -> int:
    """The 99th percentile, as the smallest value that 99 % do not exceed; 0 of nothing."""
    ordered = sorted(lags_ns)
    return ordered[-(-99 * len(ordered) // 100) - 1] if ordered else 0


def _run_queue_wait_ns() -> int | None:
    """Time this process was ready to run and had no core (second field of Linux's schedstat)."""
    try:
        return int(_SCHEDSTAT.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
