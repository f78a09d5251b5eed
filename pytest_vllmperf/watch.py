"""What is looked at while an engine is under load: its memory, its GPUs, its counters, and whether it still lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.pacing import Pace
from pytest_vllmperf.domain.records import MemorySample, ServerCounters
from pytest_vllmperf.errors import EngineError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.control_client import ControlClient
    from pytest_vllmperf.adapters.gpu import DeviceSampler
    from pytest_vllmperf.adapters.host_memory import HostMemory
    from pytest_vllmperf.domain.device import DeviceSample
    from pytest_vllmperf.domain.engine import EngineHandle

__all__ = ["Life", "Watch", "steady_bytes"]

_HOST = {"base_s": 0.25, "share": 0.002, "longest_s": 1.0}
_COUNTERS = {"base_s": 0.5, "share": 0.004, "longest_s": 2.0}
"""Together they stay below a hundredth of one core. A page of counters costs the server some milliseconds, too."""
_LIFE_PERIOD_S = 0.4
_HEALTH_TIMEOUT_S = 2.0
_PROBE_S = 10.0

Job = Callable[[bool], None]
"""Looks once; told whether it is for the last time."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """Samples memory, GPUs and server counters in threads while the body of ``with`` runs.

    A sample that cannot be taken is None in its record; an exception ends that kind of sampling and is
    told in ``failures``, never raised into the measurement.

    Args:
        pid: Leader of the engine's process tree; None of a server that runs elsewhere.
        gpu_uuids: Its GPUs.
        counters: Reads the server's counters.
    """

    pid: int | None
    gpu_uuids: tuple[str, ...]
    counters: Callable[[], ServerCounters]
    memory: list[MemorySample] = field(default_factory=list)
    devices: tuple[DeviceSample, ...] = ()
    scrapes: list[ServerCounters] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _host: HostMemory | None = None
    _gpus: DeviceSampler | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Watch:
        from pytest_vllmperf.adapters.gpu import DeviceSampler
        from pytest_vllmperf.adapters.host_memory import HostMemory

        jobs: list[tuple[str, Job, Pace]] = [("counters", self._scrape, Pace(**_COUNTERS))]
        if self.pid is not None:  # a server that runs elsewhere has no memory here
            self._host = HostMemory(self.pid)
            jobs.append(("host memory", self._sample_host, Pace(**_HOST)))
        for name, job, pace in jobs:
            thread = threading.Thread(target=self._repeat, args=(name, job, pace), name=f"watch {name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._gpus = DeviceSampler(self.gpu_uuids, lambda: self._host.members if self._host is not None else ())
        self._gpus.__enter__()
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._gpus is not None
        self._gpus.__exit__(None, None, None)
        self.devices = tuple(self._gpus.samples)
        self.failures += self._gpus.failures
        self.memory += [
            MemorySample(at_ns=s.at_ns, host_bytes=None, device_bytes=s.used_bytes)
            for s in self.devices
            if s.used_bytes is not None
        ]
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._host is not None and (unread := self._host.unread_bytes):
            self.failures.append(
                f"host memory rose too briefly to be read: host_memory_peak may be {unread / 2**20:.0f} MiB too low"
            )

    def _repeat(self, name: str, job: Job, pace: Pace) -> None:
        """Run ``job`` at once, then every period, and once more at the end: short runs get two samples."""
        try:
            _paced(job, pace)
            while not self._stop.wait(pace.period_s):
                _paced(job, pace)
            job(True)
        except Exception as error:  # noqa: BLE001 - doubt is data: a broken sampler must not end the measurement
            self.failures.append(f"{name} was not sampled to the end: {type(error).__name__}: {error}")

    def _sample_host(self, last: bool) -> None:
        assert self._host is not None
        self.memory += self._host.look(last=last)

    def _scrape(self, last: bool) -> None:
        del last
        self.scrapes.append(self.counters())


def _paced(job: Job, pace: Pace) -> None:
    """Run it and tell ``pace`` what it cost this thread."""
    began = time.thread_time()
    job(False)
    pace.cost(time.thread_time() - began)


class Life:
    """Looks several times a second whether the engine lives and works, while the body of ``with`` runs.

    ``verdict`` says what happened: the process ended, its engine core is dead (``/health`` answers, but not 200,
    or nobody listens), or it hangs. A hung engine still answers ``/health`` with 200: it is known by counters that
    stand still for the engine's ``stall_timeout_s`` and by a token that is asked for then and does not come.
    """

    def __init__(self, engine: EngineHandle) -> None:
        self._engine = engine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch life", daemon=True)
        self._verdict: str | None = None
        self._refusals = 0
        self._moved_at = time.monotonic()
        self._looked_at = 0.0
        self._counted: tuple[int | None, ...] = ()

    def verdict(self) -> str | None:
        """What is wrong; None while nothing is."""
        return self._verdict

    def __enter__(self) -> Life:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._verdict = self._verdict or self._ended()  # requests to a dead engine fail faster than this looks

    def _run(self) -> None:
        from pytest_vllmperf.adapters.control_client import ControlClient

        engine = self._engine
        with ControlClient(engine.base_url, engine.api_key, _HEALTH_TIMEOUT_S) as control:
            while self._verdict is None and not self._stop.wait(_LIFE_PERIOD_S):
                self._verdict = self._ended() or self._dead(control) or self._hung(control)

    def _ended(self) -> str | None:
        from pytest_vllmperf.adapters.host_memory import is_running

        if self._engine.pid is None or is_running(self._engine.pid):
            return None
        return "the engine's process ended"

    def _dead(self, control: ControlClient) -> str | None:
        """A refused connection or a 5xx, twice in a row; a slow answer is no sign of death."""
        if control.is_refused(self._engine.config.health_path):
            self._refusals += 1
        else:
            self._refusals = 0
        return f"{self._engine.config.health_path} says that the engine is dead" if self._refusals > 1 else None

    def _hung(self, control: ControlClient) -> str | None:
        limit_s, now = self._engine.config.stall_timeout_s, time.monotonic()
        if now - self._looked_at < limit_s / 8:
            return None
        self._looked_at = now
        counters = control.counters()
        counted = (counters.generation_tokens, counters.prompt_tokens)
        if counters.generation_tokens is None or counted != self._counted:
            self._counted, self._moved_at = counted, now
            return None
        if now - self._moved_at < limit_s:
            return None
        try:  # nobody may have asked for anything meanwhile
            control.first_token(self._engine.model_name, timeout_s=min(_PROBE_S, limit_s))
        except EngineError:
            return (
                f"the engine hangs: it answers {self._engine.config.health_path}, and made no token for "
                f"{time.monotonic() - self._moved_at:.0f} s (stall_timeout_s={limit_s:g})"
            )
        self._moved_at = time.monotonic()
        return None


def steady_bytes(memory: Sequence[MemorySample]) -> float | None:
    """The usual (median) host memory."""
    import statistics

    host: Collection[int] = [s.host_bytes for s in memory if s.host_bytes is not None]
    return float(statistics.median(host)) if host else None
