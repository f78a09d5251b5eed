"""The kernel's stamps of what arrives, and their place on the monotonic clock."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from functools import cache

from pytest_vllmperf.load.alarm import Attention

__all__ = ["ANCILLARY_SPACE", "SO_TIMESTAMPNS", "KernelClock"]

SO_TIMESTAMPNS = 35
"""Python has no name for it; the number is that of these architectures (asm-generic/socket.h)."""
ANCILLARY_SPACE = 64
"""Room for one stamp."""
_MACHINES = ("x86_64", "aarch64", "riscv64")
_TIGHT_NS = 5_000
_TRIES, _TRY_AGAIN_S = 100, 0.001


class KernelClock:
    """Puts the kernel's stamps, which are of the wall clock, on the monotonic clock.

    ``offset_ns`` is wall minus monotonic. It drifts as the wall clock is disciplined, by half a microsecond in a
    millisecond at most, and jumps when somebody sets it: :meth:`look` again now and then. ``attention`` tells for how
    long nobody was reading.
    """

    __slots__ = ("attention", "offset_ns", "works")

    def __init__(self) -> None:
        self.attention = Attention()
        self.offset_ns = 0
        self.works = _stamps_arrivals()
        """Whether this system stamps what arrives."""
        self.look()

    def look(self) -> None:
        """Read both clocks, as near to each other as can be had: between two readings a process may lose its core."""
        best = None
        for _ in range(20):
            before = time.monotonic_ns()
            wall = time.time_ns()
            after = time.monotonic_ns()
            if best is None or after - before < best:
                best = after - before
                self.offset_ns = wall - (before + after) // 2
            if best < _TIGHT_NS:
                return


@cache
def _stamps_arrivals() -> bool:
    """Whether a socket was seen to get a stamp.

    The kernel begins to stamp a moment after the first socket asks for it, and ends with the last: the one of this
    trial stays open for the life of the process.
    """
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=1) as sender,
            server.accept()[0] as receiver,
        ):
            receiver.settimeout(1)
            receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            for _ in range(_TRIES):
                sender.send(b"?")
                _, told, _, _ = receiver.recvmsg(1, ANCILLARY_SPACE)
                if any(kind == SO_TIMESTAMPNS for _, kind, _ in told):
                    os.dup(receiver.fileno())
                    return True
                time.sleep(_TRY_AGAIN_S)
    except OSError:
        pass
    return False
