"""Plain TCP sockets whose reads bear the kernel's own stamp of their arrival.

A process that waits for a core, or is busy with another socket, reads late. The kernel noted when the bytes came: with
its stamp (``SO_TIMESTAMPNS``, https://docs.kernel.org/networking/timestamping.html) a late read is no late arrival. So
reading may also wait a moment on purpose, until several sockets can be served by one wake-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Protocol

from pytest_vllmperf.load.kernel_clock import ANCILLARY_SPACE, SO_TIMESTAMPNS, KernelClock
from pytest_vllmperf.load.moderation import Moderation

__all__ = ["StampedProtocol", "StampedSockets", "StampedTransport", "connect_stamped"]

_TIMESPEC = struct.Struct("@qq")
_READ_BYTES = 16_384
_AT_ONCE = 100
"""Sockets read in one turn of the loop, in less than a millisecond: then it looks at its timers again."""
_BILLION = 1_000_000_000
_LONGEST_LATE_NS = 300 * _BILLION
"""More than that is no delay: somebody has set the wall clock."""
_DRIFT_NS = 1_000_000
"""The two clocks may have drifted apart by so much since they were last looked at."""
_MILLISECOND_NS = 1_000_000
_ON_TIME_NS = 3_000_000
"""No pause makes a read later. One that is may have brought several events, and their distance is not that of reads."""

_now = time.monotonic_ns


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


class StampedSockets:
    """The stamped sockets of a process, which its event loop watches as one.

    Each read still takes what came on one socket, with its own stamp; only the wake-up is shared, as far as
    :class:`~pytest_vllmperf.load.moderation.Moderation` allows.
    """

    def __init__(self, clock: KernelClock) -> None:
        self.clock = clock
        self.moderation = Moderation()
        self._transports: dict[int, StampedTransport] = {}
        self._ready: _Ready | None = None
        self._found = 0
        """Sockets that were ready before and after this pause, as far as they are read."""

    def add(self, fd: int, transport: StampedTransport, loop: asyncio.AbstractEventLoop) -> None:
        """Read this socket, too."""
        if self._ready is None:
            self._ready = _Ready(loop, self._woke_up, self._paused)
        self._transports[fd] = transport
        self._ready.epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Read it no more; without any socket nothing is left open."""
        assert self._ready is not None
        del self._transports[fd]
        self._ready.epoll.unregister(fd)
        if not self._transports:
            self._ready.close()
            self._ready = self.clock.attention.left_ns = None
            self._found = 0

    def _woke_up(self) -> None:
        """Read what is ready, and then perhaps look away for a moment.

        Read first: for how long nobody was reading is known in this turn of the loop only.
        """
        ready = self._ready
        assert ready is not None
        now = _now()
        served, _ = self._read(ready.epoll, now)
        if not served or self._ready is not ready:
            return
        pause_ns = self.moderation.pause_ns() if served < _AT_ONCE else 0
        if not pause_ns:
            self.moderation.woke_up(now, served)
            return
        self._found = served
        self.clock.attention.left_ns = now
        ready.look_away()
        ready.wait(pause_ns)

    def _paused(self) -> None:
        """Read what came meanwhile, and look again, or away once more while more keeps coming."""
        ready = self._ready
        assert ready is not None
        now = _now()
        served, last_ns = self._read(ready.epoll, now)
        if self._ready is not ready:
            return
        self._found += served
        if served == _AT_ONCE:
            ready.go_on()  # there may be more, which has waited for as long
            return
        pause_ns = self.moderation.paused(self._found, now - last_ns)
        self._found = 0
        if pause_ns:
            self.clock.attention.left_ns = now
            ready.wait(pause_ns)  # nothing is ready now that was not read
        else:
            self.clock.attention.left_ns = None
            ready.look()

    def _read(self, epoll: select.epoll, now: int) -> tuple[int, int]:
        """Read each socket that is ready once, at ``now``.

        Returns:
            How many there were, and when the last of these reads came.
        """
        transports, offset_ns = self._transports, self.clock.offset_ns
        before_ns, at_ns, late_ns = 0, now, 0
        found = epoll.poll(0, _AT_ONCE)
        for fd, _ in found:
            transport = transports[fd]
            try:
                data, told, _, _ = transport.recvmsg(_READ_BYTES, ANCILLARY_SPACE)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                transport.end(error)
                continue
            if not data:
                transport.end_of_file()
                continue
            if told and told[0][1] == SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(told[0][2])
                at_ns = seconds * _BILLION + nanoseconds - offset_ns
                late_ns = now - at_ns
                if not 0 <= late_ns < _LONGEST_LATE_NS:  # it came after `now`, as a rule
                    now = _now()
                    at_ns = self._believed(at_ns, now)
                    late_ns, offset_ns = now - at_ns, self.clock.offset_ns
            else:
                at_ns, late_ns = _now(), 0
            before_ns, transport.read_ns = transport.read_ns, at_ns
            transport.arrived(at_ns, data, late_ns)
        if 0 < before_ns < at_ns and late_ns < _ON_TIME_NS:
            self.moderation.spaced(at_ns - before_ns)
            self.clock.attention.event_gap_ns = self.moderation.gap_ns
        return len(found), at_ns

    def _believed(self, at_ns: int, now: int) -> int:
        """The stamp, or the moment of reading where it cannot be right."""
        if 0 <= now - at_ns < _LONGEST_LATE_NS:
            return at_ns
        if not 0 < at_ns - now < _DRIFT_NS:
            self.clock.look()  # somebody has set the wall clock
        return now


class _Ready:
    """Which sockets are ready, as the loop sees it: all of them as one descriptor, which may be shut for a while.

    What the loop watches is a gate before the sockets. To shut it costs one system call; to have the loop itself watch
    less or more costs it several, and the kernel a look at every socket.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, woke_up: Callable[[], None], paused: Callable[[], None]
    ) -> None:
        self.epoll = select.epoll()
        self._gate = select.epoll()
        self._gate.register(self.epoll, select.EPOLLIN)
        self._loop = loop
        self._paused = paused
        self._timer: asyncio.Handle | None = None
        loop.add_reader(self._gate, woke_up)

    def look(self) -> None:
        """Have the loop call when a socket is ready."""
        self._gate.modify(self.epoll, select.EPOLLIN)

    def look_away(self) -> None:
        """Have it not call."""
        self._gate.modify(self.epoll, 0)

    def wait(self, pause_ns: int) -> None:
        """Have it call after so long. Its timers know milliseconds; what is left over is not waited for."""
        self._timer = self._loop.call_later(pause_ns // _MILLISECOND_NS / 1000, self._paused)

    def go_on(self) -> None:
        """Have it call at once, when it has looked at its timers."""
        self._timer = self._loop.call_soon(self._paused)

    def close(self) -> None:
        """Leave nothing behind."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._gate)
        self._gate.close()
        self.epoll.close()


class StampedTransport(asyncio.Transport):
    """Carries bytes between a connected socket and a protocol, on any event loop that watches descriptors."""

    __slots__ = (
        *("_closed", "_loop", "_protocol", "_sock", "_sockets", "_unsent"),
        *("arrived", "read_ns", "recvmsg"),
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: StampedProtocol, sockets: StampedSockets
    ) -> None:
        super().__init__({"socket": sock})
        self.recvmsg = sock.recvmsg
        self.arrived = protocol.arrived
        self.read_ns = 0
        """Stamp of what was read last since something was written; 0 for nothing."""
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._sockets = sockets
        self._unsent = b""
        self._closed = False
        sockets.add(sock.fileno(), self, loop)
        protocol.connection_made(self)

    def end_of_file(self) -> None:
        """The other side writes no more."""
        self._protocol.eof_received()
        self.end(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand it to the kernel here and now; what it does not take follows when it can."""
        if self._closed:
            return
        self.read_ns = 0
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
            self.end(error)
            return b""

    def end(self, error: OSError | None) -> None:
        """Close, for this reason if there is one."""
        if self._closed:
            return
        self._closed = True
        self._sockets.remove(self._sock.fileno())
        if self._unsent:
            self._loop.remove_writer(self._sock)
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    def abort(self) -> None:
        """Close at once."""
        self.end(None)

    def close(self) -> None:
        """The same: there is never anything worth waiting for."""
        self.end(None)

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


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: Any) -> None:
    """As the loop's ``sock_connect``, which looks the address up once more."""
    failed = sock.connect_ex(address)
    if failed == errno.EINPROGRESS:
        writable = loop.create_future()
        loop.add_writer(sock, _set, writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock)
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, f"{os.strerror(failed)}: {address[0]} port {address[1]}")


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def connect_stamped(host: str, port: int, protocol: StampedProtocol, sockets: StampedSockets) -> StampedTransport:
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
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            await _connect(loop, sock, address)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return StampedTransport(loop, sock, protocol, sockets)
    raise last
