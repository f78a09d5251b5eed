"""A plain TCP transport whose reads bear the kernel's own stamp of their arrival.

A process that waits for a core, or is busy with another socket, reads late. The kernel noted when the bytes came: with
its stamp (``SO_TIMESTAMPNS``, https://docs.kernel.org/networking/timestamping.html) a late read is no late arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import platform
import socket
import struct
import sys
import time
from functools import cache
from typing import Any, Protocol

from pytest_vllmperf.load.alarm import Attention

__all__ = ["KernelClock", "StampedProtocol", "StampedTransport", "connect_stamped"]

_SO_TIMESTAMPNS = 35
"""Python has no name for it; the number is that of these architectures (asm-generic/socket.h)."""
_MACHINES = ("x86_64", "aarch64", "riscv64")
_TIMESPEC = struct.Struct("@qq")
_CMSG_SPACE = 64
_READ_BYTES = 16_384
_TIGHT_NS = 5_000
_TRIES, _TRY_AGAIN_S = 100, 0.001
_BILLION = 1_000_000_000
_LONGEST_LATE_NS = 300 * _BILLION
"""More than that is no delay: somebody has set the wall clock."""

_now = time.monotonic_ns


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
            receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            for _ in range(_TRIES):
                sender.send(b"?")
                _, told, _, _ = receiver.recvmsg(1, _CMSG_SPACE)
                if any(kind == _SO_TIMESTAMPNS for _, kind, _ in told):
                    os.dup(receiver.fileno())
                    return True
                time.sleep(_TRY_AGAIN_S)
    except OSError:
        pass
    return False


class StampedProtocol(Protocol):
    """What a :class:`StampedTransport` tells: an ``asyncio.Protocol`` that takes stamps."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It may be written to."""

    def arrived(self, at_ns: int, data: bytes, late_ns: int) -> None:
        """The last of ``data`` arrived at ``at_ns`` and was read ``late_ns`` after that."""

    def eof_received(self) -> bool | None:
        """The other side writes no more."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""


class StampedTransport(asyncio.Transport):
    """Carries bytes between a connected socket and a protocol, on any event loop that watches descriptors."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: StampedProtocol, clock: KernelClock
    ) -> None:
        super().__init__({"socket": sock})
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._recvmsg = sock.recvmsg
        self._arrived = protocol.arrived
        self._clock = clock
        self._unsent = b""
        self._closed = False
        loop.add_reader(sock, self._readable)
        protocol.connection_made(self)

    def _readable(self) -> None:
        try:
            data, told, _, _ = self._recvmsg(_READ_BYTES, _CMSG_SPACE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        now = _now()
        if not data:
            self._protocol.eof_received()
            self._end(None)
            return
        for _, kind, value in told:
            if kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                late = now - (seconds * _BILLION + nanoseconds - self._clock.offset_ns)
                if 0 <= late < _LONGEST_LATE_NS:
                    self._arrived(now - late, data, late)
                    return
                self._clock.look()  # somebody has set the wall clock
        self._arrived(now, data, 0)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand it to the kernel here and now; what it does not take follows when it can."""
        if self._closed:
            return
        if self._unsent:
            self._unsent += bytes(data)
            return
        self._unsent = self._sent_of(bytes(data))
        if self._unsent and not self._closed:
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        self._unsent = self._sent_of(self._unsent)
        if not self._unsent and not self._closed:
            self._loop.remove_writer(self._sock)

    def _sent_of(self, data: bytes) -> bytes:
        """What is left of ``data`` after one try."""
        try:
            return data[self._sock.send(data) :]
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            self._end(error)
            return b""

    def _end(self, error: OSError | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    def abort(self) -> None:
        """Close at once."""
        self._end(None)

    def close(self) -> None:
        """The same: there is never anything worth waiting for."""
        self._end(None)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed


def _literal(host: str, port: int) -> list[tuple[Any, ...]]:
    """The address that ``host`` spells out, which needs no resolver and its thread; none where it is a name."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return []
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return [(family, socket.SOCK_STREAM, 0, "", (host, port))]


async def connect_stamped(host: str, port: int, protocol: StampedProtocol, clock: KernelClock) -> StampedTransport:
    """Connect to the first of the host's addresses that answers.

    Raises:
        OSError: None does; the error of the last one tried.
    """
    loop = asyncio.get_running_loop()
    found = _literal(host, port) or await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    last: OSError = OSError(errno.EADDRNOTAVAIL, f"{os.strerror(errno.EADDRNOTAVAIL)}: {host}")
    for family, kind, number, _, address in found:
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):  # then reads bear this process's own stamps
                sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return StampedTransport(loop, sock, protocol, clock)
    raise last
