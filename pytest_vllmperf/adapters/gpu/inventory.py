"""Which GPUs there are, and which of them this process may use."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.adapters.gpu.nvml import library, text, told, why_not
from pytest_vllmperf.domain.environment import Gpu

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["driver_version", "list_gpus", "problem", "total_memory_bytes", "visible"]

_DRIVER = Path("/proc/driver/nvidia/gpus")
_NODES = Path("/dev")
_HIDES_ALL = ("", "-1", "NoDevFiles")


def list_gpus() -> tuple[Gpu, ...]:
    """The GPUs this process may use: all that NVML lists, less what ``CUDA_VISIBLE_DEVICES`` hides.

    Of a GPU that is split (MIG) its parts are listed. Where the driver works and NVML does not, the driver's own
    files tell which GPUs there are; then nothing is known of their memory (see :func:`problem`).
    """
    if library() is None:
        gpus = tuple(_from_driver_files())
    else:
        gpus = tuple(gpu for index in range(told("DeviceGetCount") or 0) for gpu in _describe(index))
    return visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def problem() -> str | None:
    """Why nothing is known of GPUs that are there; None where all is well, none are there, or all are hidden."""
    reason = why_not()
    if reason is None or os.environ.get("CUDA_VISIBLE_DEVICES") in _HIDES_ALL:
        return None
    after = "After an update of the driver, restart the machine or reload its modules"
    if any(True for _ in _from_driver_files()):
        return (
            f"NVML does not work ({reason}): memory, power and clocks of the GPUs are unknown, and limits on them "
            f"cannot be verified. {after}"
        )
    nodes = sorted(path.name for path in _NODES.glob("nvidia[0-9]*"))
    if nodes:
        return (
            f"NVML does not work ({reason}): there are GPUs ({', '.join(nodes)}) and nothing tells which, so engines "
            f"run on the CPU. {after}; a container needs the driver's library too (--gpus all)"
        )
    return None


def total_memory_bytes(uuids: Sequence[str]) -> int | None:
    """The memory these GPUs have together; None when one of them does not tell, or there is none."""
    sizes = {gpu.uuid: gpu.memory_bytes for gpu in list_gpus()} if uuids else {}
    found = [size for uuid in uuids if (size := sizes.get(uuid)) is not None]
    return sum(found) if found and len(found) == len(uuids) else None


def visible(gpus: Sequence[Gpu], setting: str | None) -> tuple[Gpu, ...]:
    """``gpus`` as ``CUDA_VISIBLE_DEVICES=setting`` leaves them: indices or (beginnings of) UUIDs, in its order.

    As CUDA does, the first entry that names no GPU hides itself and everything after it.
    """
    if setting is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        by_uuid = entry.startswith(("GPU-", "MIG-"))
        named = [g for g in gpus if (g.uuid.startswith(entry) if by_uuid else str(g.index) == entry)]
        if by_uuid and entry in [g.uuid for g in named]:
            named = [g for g in named if g.uuid == entry]
        if len(named) != 1 or named[0] in chosen:
            break
        chosen += named
    return tuple(chosen)


def driver_version() -> str | None:
    """The driver's version, None where there is none."""
    version = told("SystemGetDriverVersion")
    return None if version is None else text(version)


def _describe(index: int) -> Iterator[Gpu]:
    """The GPU at ``index``, or its parts where it is split."""
    whole = told("DeviceGetHandleByIndex", index)
    if whole is None:  # a GPU the driver has lost; the others work
        return
    name = told("DeviceGetName", whole)
    for device in list(_parts(whole)) or [whole]:
        uuid = told("DeviceGetUUID", device)
        if uuid is not None:
            memory = told("DeviceGetMemoryInfo", device)  # of unified memory the driver does not tell
            yield Gpu(
                index=index,
                uuid=text(uuid),
                name=text(told("DeviceGetName", device) or name or "NVIDIA GPU"),
                memory_bytes=None if memory is None else int(memory.total),
            )


def _parts(whole: Any) -> Iterator[Any]:
    mode = told("DeviceGetMigMode", whole)
    if not mode or not mode[0]:
        return
    for place in range(told("DeviceGetMaxMigDeviceCount", whole) or 0):
        part = told("DeviceGetMigDeviceHandleByIndex", whole, place)
        if part is not None:
            yield part


def _from_driver_files() -> Iterator[Gpu]:
    try:
        files = sorted(_DRIVER.glob("*/information"))
    except OSError:
        return
    for index, path in enumerate(files):
        try:
            facts = dict(re.findall(r"^([^:\n]+):\s*(.+?)\s*$", path.read_text(), re.MULTILINE))
        except OSError:
            continue
        if "GPU UUID" in facts:
            yield Gpu(index=index, uuid=facts["GPU UUID"], name=facts.get("Model", "NVIDIA GPU"), memory_bytes=None)
