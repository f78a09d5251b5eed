"""EnginePool: one live engine for each EngineConfig, launched at most once in a run."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters import engine_process, engine_state, startup_log
from pytest_vllmperf.adapters.control_client import ControlClient, RequestRefused
from pytest_vllmperf.adapters.leases import HostLeases
from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle, StartUp
from pytest_vllmperf.domain.hints import find_hint
from pytest_vllmperf.domain.report import EngineReport
from pytest_vllmperf.errors import EngineError, EngineExited, EngineStartTimeout, EngineUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vllmperf.adapters.control_client import FirstToken
    from pytest_vllmperf.adapters.engine_process import EngineProcess
    from pytest_vllmperf.domain.environment import Environment

__all__ = ["EnginePool"]

Progress = Callable[[str], None]

_POLL_S = 0.05
_HEALTH_TIMEOUT_S = 1.0
"""Bounds how late an exit is noticed: a server that accepts and does not answer holds a health check this long."""
_SETTLE_S = 5.0
"""How long a healthy server may refuse (unknown model, 4xx) before that is taken for its last word."""
_ANSWER_S = 10.0
"""How long a live engine may take to say that it is healthy."""
_DYING_S = 5.0
"""A vLLM server whose engine core died exits about 3 s later."""
_TELL_EVERY_S = 2.0
_TELL_AGAIN_S = 15.0


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One engine of the matrix and what became of it."""

    config: EngineConfig
    launches: int = 0
    process: EngineProcess | None = None
    handle: EngineHandle | None = None
    error: EngineError | None = None
    gpu_uuids: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    log_path: Path | None = None
    version: str | None = None
    released: bool = False


class EnginePool:
    """Launches engines on first use, remembers failures, stops everything.

    Args:
        engines: The matrix, by name.
        environment: Where they run; decides between CPU and GPU flags, and lists the GPUs to give out.
        directory: Where logs go, ``<engine>.log`` each.
        progress: Called with short lines about what is going on.
        leases: Keeps this pool's engines apart from those of other processes; by default there are none.
    """

    def __init__(
        self,
        *,
        engines: Mapping[str, EngineConfig],
        environment: Environment,
        directory: Path,
        progress: Progress | None = None,
        leases: HostLeases | None = None,
    ) -> None:
        self._environment = environment
        self._leases = leases or HostLeases(None)
        self._directory = directory
        self._tell = progress or (lambda _line: None)
        self._slots = {name: _Slot(config=config.on(environment.device)) for name, config in engines.items()}

    def acquire(self, name: str) -> EngineHandle:
        """The live engine ``name``, launched on first use.

        Raises:
            EngineUnavailable: This machine lacks what the engine requires, or other engines of this pool
                hold its GPUs (only the latter is not remembered).
            EngineExited: It ended while starting, or since.
            EngineStartTimeout: It was not ready within its ``startup_timeout_s``.
            EngineError: It could not be launched, or somebody else serves its port.

        A failure is remembered: later calls raise the same exception without a second launch.
        """
        slot = self._slot(name)
        if slot.error is not None:
            raise slot.error
        if slot.handle is not None:
            return slot.handle
        if slot.released:
            raise EngineError(
                f"engine {name!r} was stopped already and is launched only once in a run; use it before its release"
            )
        try:
            self._check_machine(slot)
        except EngineError as error:
            slot.error = error
            raise
        slot.gpu_uuids = self._take_gpus(slot)
        try:
            slot.handle = self._launch(slot)
        except EngineError as error:
            slot.error = error
            self._tell(f"{name}: {str(error).splitlines()[0]}")
            raise
        finally:
            if slot.handle is None:
                self._leases.give_back(slot.config.name)
        return slot.handle

    def ensure_alive(self, name: str) -> None:
        """Raise unless the engine is running and healthy.

        Raises:
            EngineExited: It ended since it was ready; the message has the cause from its log.
            EngineError: It is not running, or it runs and does not answer.
        """
        slot = self._slot(name)
        if slot.error is not None:
            raise slot.error
        if slot.process is None or slot.handle is None:
            raise EngineError(f"engine {name!r} is not running; acquire it first")
        code = slot.process.exit_code()
        if code is None:
            with ControlClient(slot.handle.base_url, slot.handle.api_key, _ANSWER_S) as control:
                if control.is_healthy():
                    slot.process.take_stock()
                    return
            code = slot.process.wait(_DYING_S)
        what = (
            "does not answer /health any more"
            if code is None
            else f"ended with {startup_log.describe_exit_code(code)} after it was ready"
        )
        kind = EngineError if code is None else EngineExited
        if slot.process.lost_guardian:
            what = "ended because its guardian was killed"
        slot.error = self._failure(kind, slot, what, api_key=slot.handle.api_key)
        self._stop(slot)
        self._leases.give_back(slot.config.name)
        raise slot.error

    def release(self, name: str) -> None:
        """Stop the engine and everything it started. Idempotent."""
        slot = self._slot(name)
        slot.released = slot.released or slot.launches > 0
        self._stop(slot)
        self._leases.give_back(slot.config.name)

    def close(self) -> None:
        """Stop all engines; each is tried even when another cannot be stopped.

        Raises:
            EngineError: Some process survived SIGKILL.
        """
        with contextlib.ExitStack() as stops:
            for name in self._slots:
                stops.callback(self.release, name)

    def launches(self, name: str) -> int:
        """How many processes were started for ``name`` so far; a port lost to somebody else costs a second one."""
        return self._slot(name).launches

    def gpu_uuids(self, name: str) -> tuple[str, ...]:
        """The GPUs given to ``name`` at its launch; empty on a machine without GPU."""
        return self._slot(name).gpu_uuids

    def reports(self) -> tuple[EngineReport, ...]:
        """What became of each engine that was asked for."""
        return tuple(_report(slot) for slot in self._slots.values() if slot.launches or slot.error)

    def _slot(self, name: str) -> _Slot:
        try:
            return self._slots[name]
        except KeyError:
            known = ", ".join(sorted(self._slots)) or "none"
            raise EngineError(f"engine {name!r} is not in the matrix; known: {known}") from None

    def _launch(self, slot: _Slot) -> EngineHandle:
        """Start it, twice at most: the second time only when somebody took the port of the first."""
        slot.log_path = self._directory / f"{slot.config.name}.log"
        if not any(other.launches for other in self._slots.values()):
            self._reap_leftovers()
        try:
            return self._start(slot)
        except EngineError as error:
            lost = isinstance(error, _PortLost) or startup_log.port_was_taken(startup_log.read_log(slot.log_path))
            if not lost:
                raise
            self._tell(f"{slot.config.name}: its port was taken, trying another")
        return self._start(slot)

    def _reap_leftovers(self) -> None:
        """End what a run left whose guardians were killed with it: it holds memory, GPUs and time."""
        for leftover in engine_state.reap_leftovers(engine_state.runtime_directory()):
            text = f"ended processes an earlier run had left: {', '.join(map(str, leftover.killed)) or 'none'}"
            survived = f"; these survived SIGKILL: {', '.join(map(str, leftover.survivors))}"
            self._tell(text + (survived if leftover.survivors else ""))

    def _check_machine(self, slot: _Slot) -> None:
        config, have = slot.config, len(self._environment.gpus)
        if self._environment.device == "cpu" and "gpu" in config.requires:
            raise EngineUnavailable(f"engine {config.name!r} requires a GPU, and none is visible here")
        if self._environment.device == "gpu" and config.gpus > have:
            raise EngineUnavailable(f"engine {config.name!r} needs {config.gpus} GPUs, and {have} are visible here")
        if path := engine_process.missing_model(config.model):
            raise EngineError(f"engine {config.name!r}: model={config.model!r}: there is nothing at {path}")

    def _take_gpus(self, slot: _Slot) -> tuple[str, ...]:
        """GPUs that no other engine of this pool has, once no other process uses them; on a CPU its turn."""
        holders = {uuid: s.config.name for s in self._slots.values() if s.process for uuid in s.gpu_uuids}
        free = tuple(gpu.uuid for gpu in self._environment.gpus if gpu.uuid not in holders)
        if self._environment.device == "gpu" and len(free) < slot.config.gpus:
            raise EngineUnavailable(
                f"engine {slot.config.name!r} needs {slot.config.gpus} GPUs and {len(free)} are free: release "
                f"{', '.join(sorted(set(holders.values())))} first"
            )
        return self._leases.take(slot.config.name, gpus=free, count=slot.config.gpus, waiting=self._tell)

    def _start(self, slot: _Slot) -> EngineHandle:
        config, log_path = slot.config, slot.log_path
        assert log_path is not None  # set by _launch
        api_key = secrets.token_urlsafe(32)
        port = engine_process.free_port()
        slot.command = engine_process.launch_command(config, port=port)
        env = engine_process.child_environment(
            config,
            device=self._environment.device,
            api_key=api_key,
            gpu_uuids=slot.gpu_uuids,
            base=os.environ,
        )
        if not engine_process.is_port_free(port):
            raise _PortLost(f"engine {config.name!r}: port {port} was taken before the launch")
        started_ns = time.monotonic_ns()
        try:
            state_path = engine_state.new_state_path(engine_state.runtime_directory())
            slot.process = engine_process.EngineProcess(slot.command, env=env, log_path=log_path, state_path=state_path)
        except EngineError as error:
            raise EngineError(f"engine {config.name!r}: {error}") from error
        slot.launches += 1
        start = _Start(pool=self, slot=slot, process=slot.process, port=port, api_key=api_key, started_ns=started_ns)
        try:
            self._tell(f"{config.name}: starting (pid {slot.process.pid}, log {log_path})")
            return start.until_ready()
        except BaseException:  # Ctrl-C while starting must not leave it running either
            self._stop(slot)
            raise

    def _failure(self, kind: type[EngineError], slot: _Slot, what: str, *, api_key: str) -> EngineError:
        assert slot.log_path is not None  # only launched engines fail this way
        headline = f"engine {slot.config.name!r} {what}"
        return kind(startup_log.describe_failure(headline, log_path=slot.log_path, secret=api_key))

    def _stop(self, slot: _Slot) -> None:
        process, slot.process, slot.handle = slot.process, None, None
        if process is not None:
            process.stop()


class _PortLost(EngineError):
    """Somebody else serves the port chosen for an engine."""


@dataclass(slots=True, kw_only=True)
class _Start:
    """One process on its way to ready."""

    pool: EnginePool
    slot: _Slot
    process: EngineProcess
    port: int
    api_key: str
    started_ns: int
    problem: str = "it never answered /health"
    refused_since: float | None = None
    phase: str = "starting"
    told: tuple[float, str] = (0.0, "starting")

    def until_ready(self) -> EngineHandle:
        """Poll until a token was streamed, watching the process all the while."""
        follower = startup_log.LogFollower(self.process.log_path)
        with ControlClient(f"http://127.0.0.1:{self.port}", self.api_key, _HEALTH_TIMEOUT_S) as control:
            while True:
                self._check_process()
                if control.is_healthy():
                    self._check_owner()
                    if first := self._first_token(control):
                        return self._handle(control, first)
                self._tell_phase(follower.new_text())
                time.sleep(_POLL_S)

    def _check_process(self) -> None:
        code = self.process.exit_code()
        if code is not None:
            how = startup_log.describe_exit_code(code)
            what = f"ended with {how} after {self._elapsed_s():.1f} s, before it was ready"
            raise self._failure(EngineExited, what)
        if self._left_s() <= 0:
            limit_s = self.slot.config.startup_timeout_s
            what = f"was not ready after {limit_s:g} s (startup_timeout_s): {self.problem}"
            raise self._failure(EngineStartTimeout, what)

    def _check_owner(self) -> None:
        """Somebody answered: it must be ours, or a stranger's server would be measured."""
        if self.process.listens_on(self.port):
            return
        self._check_process()
        raise _PortLost(
            f"engine {self.slot.config.name!r}: port {self.port} is served by someone else: none of the "
            f"processes started with pid {self.process.pid} listens on it"
        )

    def _first_token(self, control: ControlClient) -> FirstToken | None:
        """The readiness request; None when it is to be tried again."""
        name = self.slot.config.model_name
        try:
            control.require_model(name)
            return control.first_token(name, timeout_s=max(_HEALTH_TIMEOUT_S, self._left_s()))
        except RequestRefused as error:
            self.problem = str(error)
            self.refused_since = self.refused_since or time.monotonic()
            if time.monotonic() - self.refused_since > _SETTLE_S:
                raise self._refusal() from error
        except EngineError as error:
            self.problem = str(error)
        return None

    def _refusal(self) -> EngineError:
        hint = find_hint(self.problem)
        advice = f"\n  hint:  {hint}" if hint else ""
        return self._failure(EngineError, f"is healthy and refuses the readiness request: {self.problem}{advice}")

    def _handle(self, control: ControlClient, first: FirstToken) -> EngineHandle:
        ready_ns = time.monotonic_ns() - self.started_ns
        self.process.take_stock()
        cold = startup_log.compiled_cold(startup_log.read_log(self.process.log_path))
        self.slot.version = control.version()
        self.pool._tell(f"{self.slot.config.name}: ready after {ready_ns * 1e-9:.1f} s")
        return EngineHandle(
            config=self.slot.config,
            device=self.pool._environment.device,
            base_url=control.base_url,
            model_name=self.slot.config.model_name,
            api_key=self.api_key,
            pid=self.process.pid,
            command=self.process.command,
            log_path=str(self.process.log_path),
            version=self.slot.version,
            start_up=StartUp(time_to_ready_ns=ready_ns, first_request_ttft_ns=first.ttft_ns, cold=cold),
        )

    def _tell_phase(self, text: str) -> None:
        self.phase = startup_log.phase(text) or self.phase
        told_at, told = self.told
        pause_s = _TELL_EVERY_S if self.phase != told else _TELL_AGAIN_S
        if self._elapsed_s() - told_at > pause_s:
            self.told = (self._elapsed_s(), self.phase)
            self.process.take_stock()
            self.pool._tell(f"{self.slot.config.name}: {self.phase} ({self._elapsed_s():.0f} s)")

    def _failure(self, kind: type[EngineError], what: str) -> EngineError:
        return self.pool._failure(kind, self.slot, what, api_key=self.api_key)

    def _elapsed_s(self) -> float:
        return (time.monotonic_ns() - self.started_ns) * 1e-9

    def _left_s(self) -> float:
        return self.slot.config.startup_timeout_s - self._elapsed_s()


def _report(slot: _Slot) -> EngineReport:
    state = "measured"
    if slot.error is not None:
        state = "skipped" if isinstance(slot.error, EngineUnavailable) else "failed"
    return EngineReport(
        name=slot.config.name,
        model=slot.config.model_name,
        state=state,
        reason=str(slot.error) if slot.error else None,
        command=slot.command,
        env=dict(slot.config.env),
        version=slot.version,
        log_path=str(slot.log_path) if slot.launches else None,
        launches=slot.launches,
    )
