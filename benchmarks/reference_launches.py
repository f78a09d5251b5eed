"""Launches of the reference server for benchmarks that need thousands: real processes, real requests, little else.

A launch here is a process of ``tests/reference_server.py`` with the engine's flags, measured by the product's own load
client (in this process) and summary. What ``PoolLauncher`` adds around it (guardian, log, leases, proof, a process for
the load, warm-up) costs a second of CPU each and is tested elsewhere.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

__all__ = ["MODEL", "ReferenceLauncher", "driven", "measured"]

MODEL = "reference"
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

    @contextmanager
    def launched(self, engine: EngineConfig) -> Iterator[ReferenceServer]:
        from reference import reference_server

        noise = f"{self.seed}/{self.launches}"
        with reference_server(*self.options, "--noise-seed", noise, *flags(engine.args)) as server:
            yield server
