"""Device memory between engines: the driver returns it seconds after a process is dead, and sometimes never."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from pytest_vllmperf.adapters.gpu import device_memory_bytes, total_memory_bytes
from pytest_vllmperf.domain.units import format_quantity
from pytest_vllmperf.errors import EngineError

__all__ = ["DeviceRelease"]

_POLL_S = 0.25
_TELL_S = 10.0
_GIVE_UP_S = 120.0
_SLACK_BYTES = 512 * 2**20
_SLACK_SHARE = 0.01
"""What may stay in use: the driver keeps a little for itself, and other processes come and go."""


class DeviceRelease:
    """Knows what was in use on GPUs before an engine, and waits afterwards until it is so again.

    A GPU whose memory does not come back is tainted: nothing more is launched on it in this run.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._tainted: dict[str, str] = {}

    def before(self, uuids: Sequence[str]) -> dict[str, int]:
        """Memory in use on each of these GPUs now; those that do not tell are left out."""
        return {uuid: used for uuid in uuids if (used := device_memory_bytes([uuid])) is not None}

    def tainted(self, uuids: Iterable[str]) -> dict[str, str]:
        """Those of these GPUs that are not to be used any more, each with the reason."""
        return {uuid: self._tainted[uuid] for uuid in uuids if uuid in self._tainted}

    def taint(self, uuids: Iterable[str], why: str) -> None:
        """Use these no more in this run."""
        self._tainted.update(dict.fromkeys(uuids, why))

    def wait(self, engine: str, before: Mapping[str, int]) -> float:
        """Wait until no GPU holds more than ``before``, and half a GiB or 1 % beside; the seconds it took.

        Raises:
            EngineError: It still does after 120 s; these GPUs are tainted.
        """
        started, told = time.monotonic(), False
        while held := self._held(before):
            waited_s = time.monotonic() - started
            if waited_s > _GIVE_UP_S:
                why = f"{_listed(held)} did not come back within {_GIVE_UP_S:g} s after engine {engine!r} had ended"
                self.taint(held, why)
                raise EngineError(
                    f"{why}: the driver may be stuck (nvidia-smi shows who holds it; a process in state D ends only "
                    "with the machine). No other engine is launched on it in this run"
                )
            if waited_s > _TELL_S and not told:
                told = True
                self._tell(f"{engine}: waiting for the driver to take back {_listed(held)}")
            time.sleep(_POLL_S)
        return time.monotonic() - started

    def _held(self, before: Mapping[str, int]) -> dict[str, int]:
        """What is in use beyond ``before``, for each GPU where it is more than the slack."""
        held: dict[str, int] = {}
        for uuid, baseline in before.items():
            used = device_memory_bytes([uuid])
            slack = max(_SLACK_BYTES, int(_SLACK_SHARE * (total_memory_bytes([uuid]) or 0)))
            if used is not None and used > baseline + slack:
                held[uuid] = used - baseline
        return held


def _listed(held: Mapping[str, int]) -> str:
    return ", ".join(f"{format_quantity(size, unit='B')} of device memory on {uuid}" for uuid, size in held.items())
