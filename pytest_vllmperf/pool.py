"""EnginePool: one live engine for each EngineConfig, launched at most once in a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters import engine_command, startup_log
from pytest_vllmperf.adapters.control_client import ControlClient, NoAnswer
from pytest_vllmperf.adapters.host_budget import HostBudget
from pytest_vllmperf.adapters.leases import HostLeases
from pytest_vllmperf.adapters.model_files import twin_of
from pytest_vllmperf.controls import with_controls
from pytest_vllmperf.device_release import DeviceRelease
from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle
from pytest_vllmperf.domain.flag_traps import is_vllm
from pytest_vllmperf.domain.needs import host_memory_bytes, shared_memory_bytes
from pytest_vllmperf.domain.report import EngineReport
from pytest_vllmperf.errors import EngineError, EngineExited, EngineUnavailable
from pytest_vllmperf.keeping import Keeper, KeptProcess, fingerprint
from pytest_vllmperf.launching import Launching
from pytest_vllmperf.preflight import check_engine
from pytest_vllmperf.slots import Slot
from pytest_vllmperf.starting import attach

if TYPE_CHECKING:
    from pytest_vllmperf.domain.environment import Environment

__all__ = ["EnginePool"]

Progress = Callable[[str], None]

_ANSWER_S = 10.0
"""How long a live engine may take to say that it is healthy."""
_SERVE_S = 30.0
"""How long an engine that nobody asks for anything may take for one token."""
_DYING_S = 5.0
"""A vLLM server whose engine core died exits about 3 s later."""


class EnginePool:
    """Launches engines on first use, remembers failures, stops everything.

    Args:
        engines: The matrix, by name.
        environment: Where they run; decides between CPU and GPU flags, and lists the GPUs to give out.
        directory: Where logs go, ``<engine>.log`` each.
        progress: Called with short lines about what is going on.
        leases: Keeps this pool's engines apart from those of other processes; by default there are none.
        budget: Shares host memory out between this pool's engines and those of other processes.
        hide: Called with each key made, which must not be shown anywhere.
        keeper: Finds engines that earlier runs kept, and keeps this pool's; by default every engine ends with the pool.
        ports: Gives the port of each launch; by default one that is free.
    """

    def __init__(
        self,
        *,
        engines: Mapping[str, EngineConfig],
        environment: Environment,
        directory: Path,
        progress: Progress | None = None,
        leases: HostLeases | None = None,
        keeper: Keeper | None = None,
        ports: Callable[[], int] | None = None,
        hide: Callable[[str], None] | None = None,
        budget: HostBudget | None = None,
    ) -> None:
        self._environment = environment
        self._keeper = keeper
        self._leases = leases or HostLeases(None)
        self._budget = budget or HostBudget(None)
        self._tell = progress or (lambda _line: None)
        self._devices = DeviceRelease(self._tell)
        self._launching = Launching(
            environment=environment,
            directory=directory,
            leases=self._leases,
            budget=self._budget,
            devices=self._devices,
            ports=ports or engine_command.free_port,
            hide=hide or (lambda _secret: None),
            tell=self._tell,
            stop=self._stop,
        )
        self._slots = {name: Slot(config=_as_launched(config, environment)) for name, config in engines.items()}

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
            slot.checked = check_engine(slot.config, self._environment, tell=self._tell)
        except EngineError as error:
            slot.error = error
            raise
        for warning in slot.checked.warnings:
            self._tell(f"{name}: {warning}")
        if not (self._keeps(slot) and self._reuse(slot)):
            self._bring_up(slot)
        assert slot.handle is not None
        slot.handle = with_controls(slot.handle)
        return slot.handle

    def _bring_up(self, slot: Slot) -> None:
        """Launch the engine, or attach to one that somebody else runs; a failure is remembered."""
        slot.gpu_uuids = () if slot.config.url else self._take_gpus(slot)
        try:
            self._reserve_memory(slot.config)
            slot.handle = self._attach(slot) if slot.config.url else self._launch(slot)
            slot.version = slot.handle.version
        except EngineError as error:
            slot.error = error
            self._tell(f"{slot.config.name}: {str(error).splitlines()[0]}")
            raise
        finally:
            if slot.handle is None:
                self._give_back(slot)

    def _reserve_memory(self, config: EngineConfig) -> None:
        """Host memory its flags take up front; after its GPUs, in this order everywhere, so nobody waits in a ring."""
        if config.url is None:
            host, shared = host_memory_bytes(config), shared_memory_bytes(config)
            self._budget.reserve(config.name, host=host, shared=shared, waiting=self._tell)

    def _keeps(self, slot: Slot) -> bool:
        """Whether the engine may come from an earlier run, and go on for the next. Experiments own their launches."""
        return self._keeper is not None and self._keeper.reuse and not slot.fresh and slot.config.url is None

    def _reuse(self, slot: Slot) -> bool:
        """Take the engine an earlier run kept, if there is one; on a CPU it still waits for its turn."""
        assert self._keeper is not None
        found = self._keeper.find(slot.config, self._fingerprint(slot), [gpu.uuid for gpu in self._environment.gpus])
        if found is None:
            return False
        slot.handle, kept = found
        slot.process = KeptProcess(runtime=self._keeper.runtime, engine=kept)
        slot.gpu_uuids, slot.uses, slot.version = kept.gpu_uuids, kept.uses, kept.version
        slot.command, slot.log_path, slot.kept = kept.command, Path(kept.log_path), True
        if not slot.gpu_uuids:
            self._leases.take(slot.config.name, gpus=(), count=slot.config.gpus, waiting=self._tell)
        return True

    def ensure_alive(self, name: str, *, serves: bool = False) -> None:
        """Raise unless the engine is running and healthy; with ``serves``, unless it gives a token as well.

        An engine that hangs still says that it is healthy, so after requests failed a token is asked for.

        Raises:
            EngineExited: It ended since it was ready; the message has the cause from its log.
            EngineError: It is not running, or it runs and does not answer.
        """
        slot = self._slot(name)
        if slot.error is not None:
            raise slot.error
        if slot.handle is None:
            raise EngineError(f"engine {name!r} is not running; acquire it first")
        code, problem = slot.process.exit_code() if slot.process else None, ""
        if code is None:
            problem = _problem(slot.handle, serves=serves)
            if not problem:
                if slot.process:
                    slot.process.take_stock()
                return
            code = slot.process.wait(_DYING_S) if slot.process else None
        how = "" if code is None else startup_log.describe_exit_code(code)
        what = problem if code is None else f"ended with {how} after it was ready"
        kind = EngineError if code is None else EngineExited
        if slot.process and slot.process.lost_guardian:
            what = "ended because its guardian was killed"
        slot.error = self._failure(kind, slot, what)
        try:
            self._launching.stop_quietly(slot)
        finally:
            self._give_back(slot)
        raise slot.error

    def release(self, name: str) -> None:
        """Stop the engine and everything it started, and wait until its GPUs are free again. Idempotent.

        One that is kept for the next run is only let go of.

        Raises:
            EngineError: Some process survived SIGKILL, or device memory did not come back; its GPUs are used no more.
        """
        slot = self._slot(name)
        slot.released = slot.released or slot.launches > 0 or slot.uses > 0
        if slot.kept and not slot.fresh and slot.process:
            slot.process.detach()
            slot.process = slot.handle = None
        try:
            self._stop(slot)
        finally:
            self._give_back(slot)

    def renew(self, name: str) -> None:
        """Stop the engine, if it runs, and let it be launched afresh: only experiments replicate launches.

        What a failure left is forgotten; the next launch writes a log of its own, ``<engine>.2.log`` and so on.
        """
        slot = self._slot(name)
        slot.fresh = True
        self.release(name)
        slot.kept, slot.uses = False, 0
        slot.released, slot.error = False, None

    def add(self, config: EngineConfig) -> None:
        """Take in a configuration made up during the run, such as an engine of the matrix without one flag.

        Raises:
            EngineError: Another configuration has its name already.
        """
        resolved = _as_launched(config, self._environment)
        slot = self._slots.setdefault(config.name, Slot(config=resolved))
        if slot.config != resolved:
            raise EngineError(f"engine {config.name!r} is in this run already with another configuration; rename one")

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

    def uses(self, name: str) -> int:
        """How many earlier runs the live engine ``name`` has served; 0 for one launched in this run."""
        return self._slot(name).uses

    def gpu_uuids(self, name: str) -> tuple[str, ...]:
        """The GPUs given to ``name`` at its launch; empty on a machine without GPU."""
        return self._slot(name).gpu_uuids

    def reports(self) -> tuple[EngineReport, ...]:
        """What became of each engine that was asked for."""
        return tuple(
            slot.report() for slot in self._slots.values() if slot.launches or slot.attached or slot.uses or slot.error
        )

    def _slot(self, name: str) -> Slot:
        try:
            return self._slots[name]
        except KeyError:
            known = ", ".join(sorted(self._slots)) or "none"
            raise EngineError(f"engine {name!r} is not in the matrix; known: {known}") from None

    def _attach(self, slot: Slot) -> EngineHandle:
        slot.attached = True
        return attach(slot.config, device=self._environment.device, tell=self._tell)

    def _launch(self, slot: Slot) -> EngineHandle:
        print_, keeps = self._fingerprint(slot), self._keeps(slot)
        handle, process = self._launching.launch(slot, fingerprint=print_, keeps=keeps)
        if self._keeper and keeps:
            slot.kept = self._keeper.keep(handle, process, print_, slot.gpu_uuids)
        return handle

    def _fingerprint(self, slot: Slot) -> str:
        return fingerprint(slot.config, device=self._environment.device, serve=slot.checked.serve)

    def _take_gpus(self, slot: Slot) -> tuple[str, ...]:
        """GPUs that no other engine of this pool has, once no other process uses them; on a CPU its turn."""
        uuids = tuple(gpu.uuid for gpu in self._environment.gpus)
        holders = {uuid: s.config.name for s in self._slots.values() if s.process for uuid in s.gpu_uuids}
        asleep = {uuid: name for uuid, name in holders.items() if _sleeps(self._slots[name])}
        holders = {uuid: name for uuid, name in holders.items() if uuid not in asleep}
        tainted = self._devices.tainted(uuids)
        free = tuple(uuid for uuid in uuids if uuid not in holders and uuid not in tainted)
        free = tuple(sorted(free, key=lambda uuid: uuid in asleep))
        if self._environment.device == "gpu" and len(free) < slot.config.gpus:
            release = f"release {', '.join(sorted(set(holders.values())))} first" if holders else ""
            why = "; ".join(part for part in (release, *dict.fromkeys(tainted.values())) if part)
            raise EngineUnavailable(
                f"engine {slot.config.name!r} needs {slot.config.gpus} GPUs and {len(free)} are free: {why}"
            )

        def make_room(line: str | None = None) -> None:
            if self._keeper is not None:
                self._keeper.make_room(gpus=free, count=slot.config.gpus)
            if line is not None:
                self._tell(line)

        make_room()
        count = slot.config.gpus
        return self._leases.take(slot.config.name, gpus=free, count=count, waiting=make_room, sharing=asleep)

    def _failure(self, kind: type[EngineError], slot: Slot, what: str) -> EngineError:
        headline = f"engine {slot.config.name!r} {what}"
        if slot.log_path is None or slot.handle is None:  # a server somebody else runs: its log is theirs
            return kind(f"{headline} (url={slot.config.url!r})")
        return kind(startup_log.describe_failure(headline, log_path=slot.log_path, secret=slot.handle.api_key))

    def _give_back(self, slot: Slot) -> None:
        """Let others have the GPUs, or the CPU, and the engine itself where it is kept."""
        self._leases.give_back(slot.config.name)
        self._budget.give_back(slot.config.name)
        if self._keeper is not None:
            self._keeper.give_back(slot.config.name)

    def _stop(self, slot: Slot) -> None:
        """End its processes, then wait for its GPUs: the next engine finds them as this one did.

        Raises:
            EngineError: A process survived, or memory did not come back.
        """
        process, slot.process, slot.handle = slot.process, None, None
        before, slot.device_before = slot.device_before, {}
        if process is None:
            return
        try:
            process.stop()
        except EngineError as error:
            self._devices.taint(slot.gpu_uuids, f"engine {slot.config.name!r}: {error}")
            raise
        others = [uuid for s in self._slots.values() if s.process for uuid in s.gpu_uuids]
        self._devices.wait(slot.config.name, {uuid: used for uuid, used in before.items() if uuid not in others})


def _as_launched(config: EngineConfig, environment: Environment) -> EngineConfig:
    """The configuration for this machine; a shape twin has no weights to load."""
    here = config.on(environment.device)
    if twin_of(here.model) is None or "load-format" in here.args or not is_vllm(here.command):
        return here
    return replace(here, args={**here.args, "load-format": "dummy"})


def _sleeps(slot: Slot) -> bool:
    """Whether an engine has given its GPUs away and only waits to be woken up."""
    return slot.handle is not None and slot.handle.controls is not None and slot.handle.controls.asleep


def _problem(handle: EngineHandle, *, serves: bool) -> str:
    """What is wrong with a running engine, as the rest of a sentence; empty when nothing is."""
    with ControlClient(handle.base_url, handle.api_key, _ANSWER_S) as control:
        if not control.is_healthy(handle.config.health_path):
            return f"does not answer {handle.config.health_path} any more"
        if serves:
            try:
                control.first_token(handle.model_name, timeout_s=_SERVE_S)
            except NoAnswer as error:
                return f"answers {handle.config.health_path} and gives no token any more ({error}): it hangs"
            except EngineError:
                return ""  # it answers; what was wrong with the requests is told elsewhere
    return ""
