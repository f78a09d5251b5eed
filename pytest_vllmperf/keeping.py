"""Keeping engines alive between runs, for the loop of editing and running: ``--vllmperf-reuse``.

A kept engine is the same server only when everything that makes it one is equal: command, environment, vLLM's
version, and the model's files. Results measured on one that served before are marked, and never a baseline.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_vllmperf.adapters import engine_command, kept_engines
from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.adapters.interpreter import inspect_interpreter
from pytest_vllmperf.adapters.kept_engines import Borrowed, KeptEngine
from pytest_vllmperf.domain.engine import EngineHandle, StartUp
from pytest_vllmperf.errors import EngineError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.engine_process import EngineProcess
    from pytest_vllmperf.domain.engine import Device, EngineConfig

__all__ = ["Keeper", "KeptProcess", "Running", "fingerprint"]

IDLE_S = 3600.0
"""A kept engine that nobody uses for an hour ends by itself: it was forgotten."""
_ANSWER_S = 5.0
_ENVIRONMENT = ("VLLM_", "CUDA_", "HF_", "TORCH", "OMP_", "NCCL_", "PYTORCH_")
_NOT_IN_IT = ("CUDA_VISIBLE_DEVICES", "VLLM_API_KEY")


class Running(Protocol):
    """What a pool needs of an engine's process, whoever launched it."""

    @property
    def pid(self) -> int:
        """Its leader."""

    @property
    def lost_guardian(self) -> bool:
        """Whether its guardian was killed."""

    def exit_code(self) -> int | None:
        """None while it runs, and where nobody can know."""

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end."""

    def take_stock(self) -> None:
        """Note what must be ended with it."""

    def stop(self) -> None:
        """End it."""

    def detach(self) -> None:
        """Leave it running."""


def fingerprint(config: EngineConfig, *, device: Device, serve: bool) -> str:
    """Equal for launches of the same server: command, variables, vLLM's version, and the model's files."""
    given = {
        name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT) and name not in _NOT_IN_IT
    }
    what = {
        "command": engine_command.launch_command(config, port=0, serve=serve),
        "env": {**given, **config.env},
        "device": device,
        "gpus": config.gpus,
        "version": inspect_interpreter(config.python).version if config.serves_vllm else None,
        "model": _files(Path(config.model).expanduser()),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _files(model: Path) -> list[tuple[str, int, int]]:
    if not model.is_dir():
        return []
    found = ((path.name, path.stat()) for path in model.iterdir())
    return sorted((name, status.st_size, status.st_mtime_ns) for name, status in found)


@dataclass(slots=True, kw_only=True)
class KeptProcess:
    """A kept engine while this run uses it. Its exit code is its guardian's to know, and nobody else's."""

    runtime: Path
    engine: KeptEngine

    @property
    def pid(self) -> int:
        """See :class:`Running`."""
        return self.engine.pid

    @property
    def lost_guardian(self) -> bool:
        """See :class:`Running`."""
        return False

    def exit_code(self) -> int | None:
        """See :class:`Running`."""
        return None

    def wait(self, timeout_s: float) -> int | None:
        """See :class:`Running`."""
        return None

    def take_stock(self) -> None:
        """Its guardian looks by itself when it ends the engine."""

    def stop(self) -> None:
        """See :class:`Running`."""
        kept_engines.stop(self.runtime, self.engine)

    def detach(self) -> None:
        """Nothing ties it to this process."""


@dataclass(slots=True, kw_only=True)
class Keeper:
    """Keeps engines of one run for the next, and finds those of earlier ones.

    Args:
        runtime: The user's private folder for state files.
        reuse: Whether this run keeps and reuses engines. Room is made in any case: an idle engine must not make
            anybody wait.
        project: Named by ``vllmperf ps``.
        device: Where engines run here.
        tell: Called with short lines about what is going on.
    """

    runtime: Path
    reuse: bool
    project: str
    device: Device
    tell: Callable[[str], None]
    borrowed: dict[str, Borrowed] = field(default_factory=dict)

    def find(self, config: EngineConfig, print_: str, gpus: Sequence[str]) -> tuple[EngineHandle, KeptEngine] | None:
        """The engine an earlier run kept for exactly this launch, now ours to use; None when there is none."""
        kept = next((e for e in kept_engines.kept_engines(self.runtime) if e.fingerprint == print_), None)
        if not self.reuse or kept is None or not set(kept.gpu_uuids) <= set(gpus):
            return None
        borrowed = Borrowed(self.runtime, print_)
        if not borrowed.take():
            borrowed.give_back()
            self.tell(f"{config.name}: another run uses the engine that is kept; starting one of our own")
            return None
        self.borrowed[config.name] = borrowed
        if not self._answers(kept):
            self.tell(f"{config.name}: the engine that was kept (pid {kept.pid}) does not answer; starting another")
            kept_engines.stop(self.runtime, kept)
            self.give_back(config.name)
            return None
        kept_engines.register(self.runtime, replace(kept, uses=kept.uses + 1))
        minutes = (time.time() - kept.launched_at) / 60
        self.tell(f"{config.name}: reusing pid {kept.pid}, launched {minutes:.0f} min ago ({kept.uses} runs before)")
        return self._handle(config, kept), kept

    def keep(self, handle: EngineHandle, process: EngineProcess, print_: str, gpu_uuids: Sequence[str]) -> bool:
        """Let an engine that is ready outlive this run. False where that cannot be: it ends with the run."""
        assert handle.pid is not None
        borrowed = Borrowed(self.runtime, print_)
        start = kept_engines.process_start(handle.pid)
        if start is None or not borrowed.take() or not process.keep(idle_s=IDLE_S, use=borrowed.path):
            borrowed.give_back()
            return False
        self.borrowed[handle.name] = borrowed
        kept_engines.register(
            self.runtime,
            KeptEngine(
                name=handle.name,
                project=self.project,
                fingerprint=print_,
                guardians=kept_engines.guardians_in(process.state_path),
                pid=handle.pid,
                start=start,
                gpu_uuids=tuple(gpu_uuids),
                device_baseline_bytes=handle.device_baseline_bytes,
                base_url=handle.base_url,
                model_name=handle.model_name,
                api_key=handle.api_key or "",
                command=handle.command,
                log_path=handle.log_path or "",
                version=handle.version,
                time_to_ready_ns=handle.start_up.time_to_ready_ns,
                first_request_ttft_ns=handle.start_up.first_request_ttft_ns,
                cold=handle.start_up.cold,
                launched_at=time.time(),
                idle_s=IDLE_S,
                uses=1,
            ),
        )
        return True

    def give_back(self, name: str) -> None:
        """This run is done with the engine ``name``. Idempotent."""
        if borrowed := self.borrowed.pop(name, None):
            borrowed.give_back()

    def make_room(self, *, gpus: Sequence[str], count: int) -> None:
        """Stop engines nobody uses until ``count`` of ``gpus`` are not held by one, the longest-kept first."""
        kept = [engine for engine in kept_engines.kept_engines(self.runtime) if set(engine.gpu_uuids) & set(gpus)]
        free = set(gpus).difference(*(engine.gpu_uuids for engine in kept))
        for engine in kept:
            if len(free) >= count:
                return
            borrowed = Borrowed(self.runtime, engine.fingerprint)
            if borrowed.take():
                self.tell(f"{engine.name} (pid {engine.pid}), kept by an earlier run, is stopped: its GPU is needed")
                kept_engines.stop(self.runtime, engine)
                free |= set(engine.gpu_uuids)
            borrowed.give_back()

    def _answers(self, kept: KeptEngine) -> bool:
        try:
            with ControlClient(kept.base_url, kept.api_key or None, _ANSWER_S) as control:
                control.require_model(kept.model_name)
        except EngineError:
            return False
        return True

    def _handle(self, config: EngineConfig, kept: KeptEngine) -> EngineHandle:
        return EngineHandle(
            config=config,
            device=self.device,
            base_url=kept.base_url,
            model_name=kept.model_name,
            api_key=kept.api_key or None,
            pid=kept.pid,
            command=kept.command,
            log_path=kept.log_path,
            version=kept.version,
            start_up=StartUp(
                time_to_ready_ns=kept.time_to_ready_ns,
                first_request_ttft_ns=kept.first_request_ttft_ns,
                cold=kept.cold,
            ),
            gpu_uuids=kept.gpu_uuids,
            device_baseline_bytes=kept.device_baseline_bytes,
        )
