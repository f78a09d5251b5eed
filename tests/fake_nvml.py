"""NVML of a machine that is not there: a module in the place of pynvml, whose answers a test changes at will."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

GIB = 2**30


class NVMLError(Exception):
    """What pynvml raises."""


class FakeNvml:
    """Two GPUs of 80 GiB; a handle is the UUID.

    ``memory[uuid]`` is in use; ``processes[uuid]`` holds ``{pid: bytes}``. ``functions`` are by their names without
    ``nvml``: replace them, add some. Those in ``broken`` raise, and ``asked`` counts the calls.
    """

    NVMLError = NVMLError

    def __init__(self, gpus: int = 2) -> None:
        uuids = [f"GPU-{i}" for i in range(gpus)]
        self.memory = dict.fromkeys(uuids, 1 * GIB)
        self.processes: dict[str, dict[int, int | None]] = {}
        self.power_w, self.energy_j, self.reasons = 400.0, 0.0, 0
        self.broken: set[str] = set()
        self.asked: dict[str, int] = {}
        self.functions: dict[str, Callable[..., Any]] = {
            "Init": lambda: None,
            "DeviceGetCount": lambda: gpus,
            "DeviceGetHandleByIndex": uuids.__getitem__,
            "DeviceGetHandleByUUID": self._handle,
            "DeviceGetUUID": lambda handle: handle,
            "DeviceGetName": lambda _handle: b"NVIDIA H200",  # what old versions return
            "DeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 * GIB, used=self.memory[handle]),
            "DeviceGetComputeRunningProcesses": self._running,
            "DeviceGetPowerUsage": lambda _handle: int(self.power_w * 1000),
            "DeviceGetTotalEnergyConsumption": lambda _handle: int(self.energy_j * 1000),
            "DeviceGetTemperature": lambda _handle, _which: 61,
            "DeviceGetCurrentClocksEventReasons": lambda _handle: self.reasons,
            "DeviceGetClockInfo": lambda _handle, _which: 1500,
            "DeviceGetMaxClockInfo": lambda _handle, _which: 2000,
            "SystemGetDriverVersion": lambda: "570.1",
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = name.removeprefix("nvml")
        if function == name or function not in self.functions:
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.asked[function] = self.asked.get(function, 0) + 1
            if function in self.broken:
                raise NVMLError("GPU is lost")
            return self.functions[function](*arguments)

        return call

    def _handle(self, uuid: str) -> str:
        if uuid not in self.memory:
            raise NVMLError("Not Found")
        return uuid

    def _running(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=p, usedGpuMemory=m) for p, m in self.processes.get(handle, {}).items()]
