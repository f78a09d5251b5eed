"""What an engine's GPUs do right now, and a thread that keeps asking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.adapters.gpu.nvml import handle, told
from pytest_vllmperf.domain.device import DeviceSample
from pytest_vllmperf.domain.pacing import Pace

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["DeviceSampler", "device_memory_bytes", "device_sample"]

_MEMORY = {"base_s": 0.05, "share": 0.006, "longest_s": 0.25}
_FULL = {"base_s": 0.5, "share": 0.003, "longest_s": 5.0}
"""Processes, power and clocks take several calls of the driver each: they are asked twice a second, or less often
where that would cost more than its share of one core (0.02 of a core were seen at a fixed period on an H100)."""
_LEAVE_S = 0.25
"""Longest the end of a measurement waits for a driver that does not answer."""
_THROTTLE_BITS = {
    0x04: "SW power cap",
    0x08: "HW slowdown",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake",
}
_MILLI = 1e-3
_TEMPERATURE_GPU, _CLOCK_SM = 0, 1
"""NVML's own numbers: NVML_TEMPERATURE_GPU, NVML_CLOCK_SM."""


def device_memory_bytes(uuids: Sequence[str]) -> int | None:
    """Memory in use on these GPUs together, by whatever process; None when one of them does not tell."""
    return _sum([_used_bytes(uuid) for uuid in uuids])


def device_sample(uuids: Sequence[str], pids: Collection[int] | None) -> DeviceSample:
    """One look at the GPUs. With ``pids``, the engine's processes, a full one; without only at the memory in use."""
    at_ns = time.monotonic_ns()
    used = device_memory_bytes(uuids)
    if pids is None:
        return DeviceSample(at_ns=at_ns, used_bytes=used)
    devices = [device for uuid in uuids if (device := handle(uuid)) is not None]
    power = _sum([told("DeviceGetPowerUsage", device) for device in devices])
    energy = _sum([told("DeviceGetTotalEnergyConsumption", device) for device in devices])
    degrees = [told("DeviceGetTemperature", device, _TEMPERATURE_GPU) for device in devices]
    return DeviceSample(
        at_ns=at_ns,
        used_bytes=used,
        own_bytes=_own_bytes(devices, pids),
        power_w=None if power is None else power * _MILLI,
        energy_j=None if energy is None else energy * _MILLI,
        sm_clock_ratio=min((ratio for device in devices if (ratio := _clock_ratio(device)) is not None), default=None),
        temperature_c=max((float(d) for d in degrees if d is not None), default=None),
        throttled=_named([bits for device in devices if (bits := _throttle_bits(device)) is not None]),
    )


def _used_bytes(uuid: str) -> int | None:
    device = handle(uuid)
    memory = None if device is None else told("DeviceGetMemoryInfo", device)
    return None if memory is None else int(memory.used)


def _own_bytes(devices: Sequence[Any], pids: Collection[int]) -> int | None:
    """Memory of these processes; None where the driver does not tell, or numbers processes in another namespace."""
    total, found = 0, False
    for device in devices:
        running = told("DeviceGetComputeRunningProcesses", device)
        if running is None:
            return None
        for process in running:
            if process.pid in pids:
                if process.usedGpuMemory is None:
                    return None
                total, found = total + int(process.usedGpuMemory), True
    return total if found else None


def _throttle_bits(device: Any) -> int | None:
    bits = told("DeviceGetCurrentClocksEventReasons", device)
    return told("DeviceGetCurrentClocksThrottleReasons", device) if bits is None else bits  # its name until driver 530


def _clock_ratio(device: Any) -> float | None:
    now, most = told("DeviceGetClockInfo", device, _CLOCK_SM), told("DeviceGetMaxClockInfo", device, _CLOCK_SM)
    return None if now is None or not most else float(now / most)


def _named(bits: Sequence[int]) -> tuple[str, ...] | None:
    if not bits:
        return None
    return tuple(name for bit, name in _THROTTLE_BITS.items() if any(bit & word for word in bits))


def _sum(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


class DeviceSampler:
    """Samples GPUs in a thread, 20 times a second, while the body of ``with`` runs.

    Where the driver is slow it samples less often, so that it takes less than a hundredth of one core.

    A driver that does not answer delays nothing but the samples; the gap is in their times.

    Args:
        uuids: The GPUs.
        processes: Gives the engine's process ids; asked twice a second.
    """

    def __init__(self, uuids: Sequence[str], processes: Callable[[], Collection[int]]) -> None:
        self.samples: list[DeviceSample] = []
        self.failures: list[str] = []
        self.cpu_s = 0.0
        self._uuids, self._processes = tuple(uuids), processes
        self._memory, self._full, self._full_at_s = Pace(**_MEMORY), Pace(**_FULL), 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch GPUs", daemon=True)

    def __enter__(self) -> DeviceSampler:
        if self._uuids:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if not self._uuids:
            return
        self._thread.join(_LEAVE_S)
        if self._thread.is_alive():
            last = self.samples[-1].at_ns if self.samples else None
            gap = "" if last is None else f" for {(time.monotonic_ns() - last) * 1e-9:.1f} s"
            self.failures.append(f"the GPU driver did not answer{gap} at the end of the measurement")

    def _run(self) -> None:
        """A full sample at both ends: energy is the difference of two readings."""
        try:
            self._sample(full=True)
            while not self._stop.wait(self._memory.period_s):
                self._sample(full=time.monotonic() - self._full_at_s >= self._full.period_s)
            self._sample(full=True)
        except Exception as error:  # noqa: BLE001 - doubt is data: a broken sampler must not end the measurement
            self.failures.append(f"GPUs were not sampled to the end: {type(error).__name__}: {error}")
        finally:
            self.cpu_s = time.thread_time()

    def _sample(self, *, full: bool) -> None:
        began = time.thread_time()
        self.samples.append(device_sample(self._uuids, self._processes() if full else None))
        (self._full if full else self._memory).cost(time.thread_time() - began)
        if full:
            self._full_at_s = time.monotonic()
