"""What the client alone can do on this machine, found out once against a server that does next to nothing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest_vllmperf.load
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import LoadProcessError
from pytest_vllmperf.load.driver import run_load

__all__ = ["Calibration", "calibrate", "workers_for"]

_STREAMS = 64
_TOKENS = 50
_PERIOD_S = 0.008
_BUSY_SHARE = 1 / 3
"""One load process gets at most this much to do: three times more must fit before it is late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Cost and delay of one load process with nothing in its way.

    Args:
        us_per_event: CPU time of capturing one event that has a read of its own, in microseconds.
        loop_lag_mean_s, loop_lag_p99_s: How late its event loop attended to what was ready; None where unknown.
    """

    us_per_event: float
    loop_lag_mean_s: float | None
    loop_lag_p99_s: float | None

    @property
    def events_per_s(self) -> float:
        """What one process could read with a core of its own."""
        return 1e6 / self.us_per_event


@functools.cache
def calibrate() -> Calibration:
    """Measure it: half a second, once in a process.

    Raises:
        LoadProcessError: The null server or the load process did not work.
    """
    home = Path(pytest_vllmperf.load.__file__).parents[2]
    command = (sys.executable, "-m", "pytest_vllmperf.load.null_server", str(_TOKENS), str(_PERIOD_S))
    with subprocess.Popen(command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            if not port.isdigit():
                raise LoadProcessError("calibration: the null server did not start")
            run = run_load(
                Workload(
                    name="calibration",
                    input_tokens=1,
                    output_tokens=_TOKENS,
                    requests=_STREAMS,
                    max_concurrency=_STREAMS,
                    workers=1,
                    timeout_s=30.0,
                ),
                base_url=f"http://127.0.0.1:{int(port)}",
                model="null",
                api_key=None,
                token_range=(300, 30_000),
                seed=0,
            )
        finally:
            server.kill()
    events = sum(len(record.event_ns) for record in run.records if record.succeeded)
    if not events:
        raise LoadProcessError(f"calibration: nothing came from the null server: {run.records[0].detail}")
    client = run.client
    return Calibration(
        us_per_event=client.cpu_ns / events / 1e3,
        loop_lag_mean_s=None if client.loop_lag_mean_ns is None else client.loop_lag_mean_ns * 1e-9,
        loop_lag_p99_s=None if client.loop_lag_p99_ns is None else client.loop_lag_p99_ns * 1e-9,
    )


def workers_for(events_per_s: float, calibration: Calibration, *, cores: int | None = None) -> int:
    """Load processes needed so that each has two thirds of a core to spare; half the cores at most."""
    needed = -(-events_per_s // (_BUSY_SHARE * calibration.events_per_s))
    return int(max(1, min(needed, (cores or len(os.sched_getaffinity(0))) // 2)))
