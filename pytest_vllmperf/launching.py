"""From a configuration to a ready process: its environment, its log, its port, and a second try where that helps."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters import engine_command, engine_process, engine_state, startup_log
from pytest_vllmperf.compiling import first_start_alone
from pytest_vllmperf.errors import EngineError
from pytest_vllmperf.starting import PortLost, Start

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.host_budget import HostBudget
    from pytest_vllmperf.adapters.leases import HostLeases
    from pytest_vllmperf.device_release import DeviceRelease
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.environment import Environment
    from pytest_vllmperf.slots import Slot

__all__ = ["Launching"]

_ENOUGH_DISK_BYTES = 2**30


@dataclass(slots=True, kw_only=True)
class Launching:
    """Launches the engines of one pool.

    Args:
        environment: Where they run.
        directory: Where logs go.
        leases, budget: What their guardians are to hold as long as they live.
        devices: Knows what was in use on the GPUs before.
        ports: Gives the port of each launch.
        hide: Called with each key made, which must not be shown anywhere.
        tell: Called with short lines about what is going on.
        stop: Ends what a failed start left of an engine.
        prepared: Whether leftovers of earlier runs were looked for, and the disk looked at.
    """

    environment: Environment
    directory: Path
    leases: HostLeases
    budget: HostBudget
    devices: DeviceRelease
    ports: Callable[[], int]
    hide: Callable[[str], None]
    tell: Callable[[str], None]
    stop: Callable[[Slot], None]
    prepared: bool = False

    def launch(self, slot: Slot, *, fingerprint: str, keeps: bool) -> tuple[EngineHandle, engine_process.EngineProcess]:
        """Start it, and once more where the first start fell to something that need not happen again.

        Args:
            slot: The engine; its GPUs and memory are leased already.
            fingerprint: Equal for launches of the same server.
            keeps: Whether it may outlive the run.

        Raises:
            EngineExited: It ended while starting.
            EngineStartTimeout: It was not ready in time.
            EngineError: It could not be launched, or somebody else serves its port.
        """
        number = f".{slot.launches + 1}" if slot.launches else ""
        if keeps:  # the next launch of that name must not cut off what a kept engine still writes
            number = f".kept-{secrets.token_hex(4)}"
        slot.log_path = self.directory / f"{slot.config.name}{number}.log"
        if not self.prepared:
            self._reap_leftovers()
            self._check_disk()
            self.prepared = True
        try:
            return self._start(slot, fingerprint)
        except EngineError as error:
            log = startup_log.read_log(slot.log_path)
            if isinstance(error, PortLost) or startup_log.port_was_taken(log):
                self.tell(f"{slot.config.name}: its port was taken, trying another")
                return self._start(slot, fingerprint)
            if not startup_log.compile_cache_is_broken(log):
                raise
            self.tell(f"{slot.config.name}: the compile cache is broken, trying once more with an empty one")
        return self._start(slot, fingerprint, fresh_cache=True)

    def _check_disk(self) -> None:
        """A full disk loses logs and results; it is told before, not found out afterwards."""
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < _ENOUGH_DISK_BYTES:
            self.tell(f"only {free / 2**20:.0f} MiB are free in {self.directory}: logs and results may be cut short")

    def _reap_leftovers(self) -> None:
        """End what a run left whose guardians were killed with it: it holds memory, GPUs and time."""
        for leftover in engine_state.reap_leftovers(engine_state.runtime_directory()):
            text = f"ended processes an earlier run had left: {', '.join(map(str, leftover.killed)) or 'none'}"
            survived = f"; these survived SIGKILL: {', '.join(map(str, leftover.survivors))}"
            self.tell(text + (survived if leftover.survivors else ""))

    def _start(
        self, slot: Slot, fingerprint: str, *, fresh_cache: bool = False
    ) -> tuple[EngineHandle, engine_process.EngineProcess]:
        config, api_key = slot.config, secrets.token_urlsafe(32)
        self.hide(api_key)
        env = engine_command.child_environment(
            config,
            device=self.environment.device,
            api_key=api_key,
            gpu_uuids=slot.gpu_uuids,
            base=os.environ,
        )
        if fresh_cache:
            env["VLLM_CACHE_ROOT"] = tempfile.mkdtemp(prefix="vllmperf-cache-")
            atexit.register(shutil.rmtree, env["VLLM_CACHE_ROOT"], ignore_errors=True)
        with first_start_alone(config, env=env, fingerprint=fingerprint, leases=self.leases, tell=self.tell):
            return self._until_ready(slot, env, api_key)

    def _until_ready(
        self, slot: Slot, env: Mapping[str, str], api_key: str
    ) -> tuple[EngineHandle, engine_process.EngineProcess]:
        config, log_path = slot.config, slot.log_path
        assert log_path is not None  # set by launch
        port = self.ports()
        slot.command = engine_command.launch_command(config, port=port, serve=slot.checked.serve)
        if not engine_command.is_port_free(port):
            raise PortLost(f"engine {config.name!r}: port {port} was taken before the launch")
        device_before = self.devices.before(slot.gpu_uuids)
        started_ns = time.monotonic_ns()
        try:
            state_path = engine_state.new_state_path(engine_state.runtime_directory())
            leases = (*self.leases.descriptors(config.name), *self.budget.descriptors(config.name))
            process = engine_process.EngineProcess(
                slot.command, env=env, log_path=log_path, state_path=state_path, leases=leases
            )
            slot.process = process
        except EngineError as error:
            raise EngineError(f"engine {config.name!r}: {error}") from error
        slot.launches += 1
        slot.device_before = device_before
        start = Start(
            config=config,
            device=self.environment.device,
            process=process,
            port=port,
            api_key=api_key,
            started_ns=started_ns,
            tell=self.tell,
            gpu_uuids=slot.gpu_uuids,
            device_before=device_before,
            env=env,
        )
        try:
            self.tell(f"{config.name}: starting (pid {process.pid}, log {log_path})")
            return start.until_ready(), process
        except EngineError:
            self.stop_quietly(slot)
            raise
        except BaseException:  # Ctrl-C while starting must not leave it running either
            self.stop(slot)
            raise

    def stop_quietly(self, slot: Slot) -> None:
        """Stop an engine that failed: what goes wrong now must not hide why it failed, and is told instead."""
        try:
            self.stop(slot)
        except EngineError as error:
            self.tell(f"{slot.config.name}: {error}")
