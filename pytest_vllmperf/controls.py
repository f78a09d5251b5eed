"""What one can do with a live engine beside asking it: let it sleep, wake it, look at what proves its optimisations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.adapters.gpu import device_memory_bytes
from pytest_vllmperf.adapters.host_memory import process_tree_pss_bytes
from pytest_vllmperf.domain.sleeping import SleepStep
from pytest_vllmperf.errors import EngineError

if TYPE_CHECKING:
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.evidence import Evidence

__all__ = ["Controls", "with_controls"]

_SLEEP_S = 300.0
"""Tens of GiB of weights go to host memory page by page."""
_SETTLE_S = 5.0
_POLL_S = 0.1
_DISCARDS_WEIGHTS = 2


def with_controls(handle: EngineHandle) -> EngineHandle:
    """``handle`` with controls of its own."""
    return replace(handle, controls=Controls(handle))


@dataclass(slots=True)
class Controls:
    """The controls of one engine; see :class:`~pytest_vllmperf.domain.engine.EngineHandle`."""

    handle: EngineHandle
    level: int | None = None

    def sleep(self, level: int) -> SleepStep:
        """Let the engine sleep: level 1 keeps its weights in host memory, level 2 keeps nothing.

        Raises:
            EngineError: It was not launched for it, it is asleep already, or it does not do it.
        """
        if not self.handle.config.args.get("enable-sleep-mode"):
            raise EngineError(
                f'engine {self.handle.name!r} cannot sleep: give it args={{"enable-sleep-mode": True}} (on a GPU)'
            )
        if level not in (1, 2):
            raise EngineError(f"engine {self.handle.name!r}: sleep level {level!r} is unknown; allowed: 1, 2")
        if self.level is not None:
            raise EngineError(f"engine {self.handle.name!r} sleeps already, at level {self.level}")
        with self._client() as control:
            step = self._step("sleep", level, lambda: control.post(f"/sleep?level={level}"))
            if control.is_sleeping() is False:
                raise EngineError(f"engine {self.handle.name!r} was told to sleep and is awake")
        self.level = level
        return step

    def wake(self) -> SleepStep:
        """Wake it, and wait until it serves a token again; after level 2 its weights are loaded anew.

        Raises:
            EngineError: It does not sleep, or does not wake up to serve.
        """
        level = self.level
        if level is None:
            raise EngineError(f"engine {self.handle.name!r} does not sleep")
        with self._client() as control:

            def wake() -> None:
                if level == _DISCARDS_WEIGHTS:
                    control.post("/wake_up?tags=weights")
                    control.post("/collective_rpc", {"method": "reload_weights"})
                    control.post("/wake_up?tags=kv_cache")
                else:
                    control.post("/wake_up")
                control.first_token(self.handle.model_name)

            step = self._step("wake", level, wake)
        self.level = None
        return step

    def evidence(self) -> tuple[Evidence, ...]:
        """What proves, right now, which optimisations are active."""
        from pytest_vllmperf.proof import prove

        return prove(self.handle).evidence

    @property
    def asleep(self) -> bool:
        """Whether it sleeps, as far as this object was used to tell it."""
        return self.level is not None

    def _client(self) -> ControlClient:
        return ControlClient(self.handle.base_url, self.handle.api_key, _SLEEP_S)

    def _step(self, action: Literal["sleep", "wake"], level: int, act: Callable[[], object]) -> SleepStep:
        device, host = self._memory()
        started_ns = time.monotonic_ns()
        act()
        took_ns = time.monotonic_ns() - started_ns
        device_after, host_after = self._settled(device) if action == "sleep" else self._memory()
        return SleepStep(
            action=action,
            level=level,
            duration_ns=took_ns,
            device_bytes_before=device,
            device_bytes_after=device_after,
            host_bytes_before=host,
            host_bytes_after=host_after,
        )

    def _settled(self, before: int | None) -> tuple[int | None, int | None]:
        """Memory once the driver shows what was freed, which is a moment after the engine said so."""
        deadline = time.monotonic() + _SETTLE_S
        device, host = self._memory()
        while before is not None and device is not None and device >= before and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            device, host = self._memory()
        return device, host

    def _memory(self) -> tuple[int | None, int | None]:
        pid = self.handle.pid
        return device_memory_bytes(self.handle.gpu_uuids), None if pid is None else process_tree_pss_bytes(pid)
