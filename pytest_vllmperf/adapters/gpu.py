"""GPUs as NVML shows them. Without NVML, a driver or a GPU there are simply none; nothing here raises."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.environment import Gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["device_memory_bytes", "driver_version", "list_gpus", "total_memory_bytes", "visible"]


def list_gpus() -> tuple[Gpu, ...]:
    """The GPUs this process may use: all that NVML lists, less what ``CUDA_VISIBLE_DEVICES`` hides."""
    nvml = _nvml()
    if nvml is None:
        return ()
    try:
        gpus = tuple(_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError:
        return ()
    return visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: Sequence[Gpu], setting: str | None) -> tuple[Gpu, ...]:
    """``gpus`` as ``CUDA_VISIBLE_DEVICES=setting`` leaves them: indices or (beginnings of) UUIDs, in its order.

    As CUDA does, the first entry that names no GPU hides itself and everything after it.
    """
    if setting is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        named = [g for g in gpus if (str(g.index) == entry or (entry.startswith("GPU-") and g.uuid.startswith(entry)))]
        if len(named) != 1 or named[0] in chosen:
            break
        chosen += named
    return tuple(chosen)


def driver_version() -> str | None:
    """The driver's version, None where there is none."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        return _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None


def device_memory_bytes(uuids: Sequence[str]) -> int | None:
    """Memory in use on these GPUs together, by whatever process; None when one of them does not tell."""
    nvml = _nvml()
    if nvml is None or not uuids:
        return None
    try:
        return sum(int(nvml.nvmlDeviceGetMemoryInfo(_handle(uuid)).used) for uuid in uuids)
    except (nvml.NVMLError, TypeError, ValueError):
        return None


def total_memory_bytes(uuids: Sequence[str]) -> int | None:
    """The memory these GPUs have together; None when one of them does not tell, or there is none."""
    sizes = {gpu.uuid: gpu.memory_bytes for gpu in list_gpus()} if uuids else {}
    found = [size for uuid in uuids if (size := sizes.get(uuid)) is not None]
    return sum(found) if found and len(found) == len(uuids) else None


@functools.cache
def _nvml() -> Any | None:
    """NVML, initialised once: memory is sampled many times a second."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - pynvml raises AttributeError and OSError too; all mean the same: no NVML
        return None
    return pynvml


@functools.cache
def _handle(uuid: str) -> Any:
    nvml = _nvml()
    assert nvml is not None  # callers have asked
    return nvml.nvmlDeviceGetHandleByUUID(uuid)


def _describe(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except (nvml.NVMLError, TypeError):
        memory = None  # unified memory: the driver does not say
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=memory,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
