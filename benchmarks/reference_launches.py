"""Launches of the reference server for benchmarks that need thousands: real processes, real requests, little else.

A launch here is a process of ``tests/reference_server.py`` with the engine's flags, measured by the product's own load
client (in this process) and summary. The process is forked off this one, which has read the server's code once: a
start of Python for each launch would take as much of the machine as the load itself. What ``PoolLauncher`` adds around
it (guardian, log, leases, proof, a process for the load, warm-up) costs a second of CPU each and is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.engine import EngineConfig, flags
from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.domain.summary import Summary, summarize
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.experiment import Launch
from pytest_vllmperf.load.plan import Plan, deadline_s
from pytest_vllmperf.load.worker import Drive

if TYPE_CHECKING:
    from reference import ReferenceServer

__all__ = ["MODEL", "ReferenceLauncher", "driven", "forked_server", "measured"]

MODEL = "reference"
_START_S = 20.0
sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]


def measured(server: ReferenceServer, workload: Workload, *, engine: str, seed: int) -> Summary:
    """One load run against a live reference server, driven from this process."""
    return driven(server, workload, engine=engine, seed=seed)[0]


def driven(server: ReferenceServer, workload: Workload, *, engine: str, seed: int) -> tuple[Summary, LoadRun]:
    """Likewise, with the records behind it."""
    plan = Plan(
        workload=workload,
        base_url=server.base_url,
        model=MODEL,
        api_key=None,
        token_range=(300, 4000),
        seed=seed,
        deadline_s=deadline_s(workload, None),
    )
    drive = Drive(plan)
    run = drive.run()
    run = type(run)(**{name: getattr(run, name) for name in run.__slots__} | {"records": tuple(drive.records())})
    return summarize(run, engine=engine, model=MODEL, workload=workload), run


@dataclass
class ReferenceLauncher:
    """Launches by name; ``options`` are the reference server's own, ``seed`` decides every launch's noise."""

    options: Sequence[str]
    seed: int
    launches: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def measure(self, engine: EngineConfig, asked: Sequence[Workload]) -> Launch:
        self.launches += 1
        self.numbers[engine.name] = self.numbers.get(engine.name, 0) + 1
        with self.launched(engine) as server:
            summaries = {
                what.name: measured(
                    server, what, engine=engine.name, seed=zlib.crc32(f"{self.seed}/{self.launches}".encode())
                )
                for what in asked
            }
        return Launch(engine=engine.name, number=self.numbers[engine.name], version=None, summaries=summaries)

    def launched(self, engine: EngineConfig) -> AbstractContextManager[ReferenceServer]:
        return forked_server(*self.options, "--noise-seed", f"{self.seed}/{self.launches}", *flags(engine.args))


@contextmanager
def forked_server(*options: str) -> Iterator[ReferenceServer]:
    """A process of the reference server with these options, stopped in the end.

    Raises:
        RuntimeError: It ended while starting, or did not listen in time.
    """
    from reference import ReferenceServer
    from reference_model import flags_in
    from reference_server import options_of, serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = ["--model", MODEL, "--port", str(port), *options]
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            asyncio.run(serve(options_of(argv), flags_in(argv)))
        finally:
            os._exit(1)
    try:
        _wait_until_it_listens(pid, port)
        yield ReferenceServer(f"http://127.0.0.1:{port}", pid)
    finally:
        os.kill(pid, signal.SIGTERM)  # where it has ended by itself, nobody has asked for its status yet
        os.waitpid(pid, 0)


def _wait_until_it_listens(pid: int, port: int) -> None:
    limit = time.monotonic() + _START_S
    while not _listens(port):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise RuntimeError("the reference server ended while starting")
        if time.monotonic() > limit:
            raise RuntimeError(f"the reference server did not listen within {_START_S:g} s")
        time.sleep(0.002)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
