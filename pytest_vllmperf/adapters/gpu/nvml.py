"""NVML, initialised once; and why it is not there, where it is not."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["handle", "library", "text", "told", "why_not"]


def library() -> Any | None:
    """The library, None without a driver that works."""
    return _load()[0]


def why_not() -> str | None:
    """Why there is no library, such as ``Driver/library version mismatch``; None where there is one."""
    return _load()[1]


@functools.cache
def _load() -> tuple[Any | None, str | None]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - pynvml raises AttributeError and OSError too; all mean: no NVML
        return None, str(error) or type(error).__name__
    return pynvml, None


@functools.cache
def handle(uuid: str) -> Any | None:
    """The handle of a GPU or of a MIG device; None where there is none of that UUID."""
    return told("DeviceGetHandleByUUID", uuid)


def told(function: str, *arguments: Any) -> Any | None:
    """What the driver answers to ``nvml<function>(*arguments)``.

    None where it does not know (MIG, unified memory, an old driver), or the GPU is lost.
    """
    nvml = library()
    if nvml is None:
        return None
    try:
        return getattr(nvml, f"nvml{function}")(*arguments)
    except (nvml.NVMLError, AttributeError, TypeError, ValueError):
        return None


def text(value: str | bytes) -> str:
    """Names as text: old versions return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def forget() -> None:
    """Look for the library anew."""
    _load.cache_clear()
    handle.cache_clear()
