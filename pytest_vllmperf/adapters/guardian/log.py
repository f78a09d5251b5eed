"""Keeping an engine's log small without ever holding the engine up: what is cut out is its middle."""

from __future__ import annotations

import contextlib
import ctypes
import os

__all__ = ["LOG_BYTES", "trim"]

LOG_BYTES = 64 * 2**20
"""What a log may take on disk."""
_HEAD_BYTES = 8 * 2**20
"""Its beginning tells the configuration."""
_TAIL_BYTES = 40 * 2**20
"""Its end tells what went wrong. The rest of :data:`LOG_BYTES` is what may come before the next cut."""
_PAGE = 2**20
"""A multiple of every file system's block."""
_BLOCK = 512
_KEEP_SIZE, _PUNCH_HOLE, _COLLAPSE_RANGE = 0x01, 0x02, 0x08


def trim(fd: int) -> bool:
    """Cut the middle out of the file at ``fd`` if it takes more than :data:`LOG_BYTES`; whether it did.

    The engine goes on writing at the end meanwhile: no pipe stands between it and the file, so nothing can block it.
    Where the file system cannot take a range out, it becomes a hole that reads as zeros and takes no room.
    """
    with contextlib.suppress(OSError):
        status = os.fstat(fd)
        if status.st_blocks * _BLOCK <= LOG_BYTES:
            return False
        end = (status.st_size - _TAIL_BYTES) // _PAGE * _PAGE
        if end <= _HEAD_BYTES:
            return False
        return _allocate(fd, _COLLAPSE_RANGE, end) or _allocate(fd, _PUNCH_HOLE | _KEEP_SIZE, end)
    return False


def _allocate(fd: int, mode: int, end: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(call(fd, mode, _HEAD_BYTES, end - _HEAD_BYTES) == 0)
