"""Precise timers: event loops round to milliseconds, which is as long as a small model's token."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import time
from collections.abc import Callable
from functools import cache

__all__ = ["Alarm", "Attention", "LagProbe", "run_queue_wait_ns"]

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_BILLION = 1_000_000_000
_MEAN_GAP_NS = 10_000_000
_RAREST_GAP_NS = 100_000_000
_NOTICED_NS = 1_000_000
"""A moment missed by less passes for seen."""


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """Calls back at a moment of the monotonic clock, through Linux's timerfd.

    Where there is none the loop's own timer serves, up to a millisecond late; dispatch lag shows it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._at_ns: int | None = None
        self._spec = _TimerSpec()
        self._moment, self._spec_at = self._spec.value, ctypes.byref(self._spec)
        self._libc, self._fd = _timer()
        if self._fd is not None:
            loop.add_reader(self._fd, self._expired)

    def set(self, at_ns: int) -> None:
        """Call back at ``at_ns``, or at once when that has passed. Replaces the moment set before."""
        if self._fd is None or self._libc is None:
            self._cancel_handle()
            delay_s = max(0.0, (at_ns - time.monotonic_ns()) * 1e-9)
            self._handle = self._loop.call_later(delay_s, self._callback)
            return
        self._at_ns = at_ns
        self._moment.seconds, self._moment.nanoseconds = divmod(max(1, at_ns), _BILLION)
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._spec_at, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never call back again."""
        self._cancel_handle()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _expired(self) -> None:
        if self._at_ns is None or time.monotonic_ns() < self._at_ns:
            return  # set anew between its expiry and this call
        self._at_ns = None
        self._callback()
        if self._at_ns is None and self._fd is not None:  # to set it anew stops its ringing, too
            os.read(self._fd, 8)

    def _cancel_handle(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Attention:
    """For how long the event loop has not been looking, when it looks again after being kept from it.

    A process that waits for a core is told so by the kernel (``/proc/self/schedstat``). One that was stopped, or was
    busy in another callback, is not: there it is moments that come at random and pass unseen which tell.

    Args:
        mean_gap_ns: Between two of those moments, on average: the loop has been away for so much longer than since the
            first it missed.
    """

    __slots__ = ("_away_ns", "_looked_ns", "_waited_ns", "due_ns", "event_gap_ns", "left_ns", "mean_gap_ns")

    def __init__(self, *, mean_gap_ns: int = _MEAN_GAP_NS) -> None:
        self.due_ns: int | None = None
        """The first of those moments that the loop has not seen yet."""
        self.left_ns: int | None = None
        """When it looked away on purpose, until it looks again."""
        self.event_gap_ns = 0
        """Between two events of a stream, as far as is known: who is away for less finds no two of them in one read."""
        self.mean_gap_ns = mean_gap_ns
        self._waited_ns = run_queue_wait_ns() or 0
        self._looked_ns: int | None = None
        self._away_ns = 0

    def away_ns(self, now_ns: int) -> int:
        """For how long it has been away at ``now_ns``. Throughout one turn, however long, it is away."""
        if self._looked_ns is None:
            waited_ns = run_queue_wait_ns() or 0
            missed_ns = 0 if self.due_ns is None else now_ns - self.due_ns
            unseen_ns = missed_ns + self.mean_gap_ns if missed_ns > _NOTICED_NS else 0
            self._away_ns = max(waited_ns - self._waited_ns, unseen_ns)
            self._waited_ns, self._looked_ns = waited_ns, now_ns
            asyncio.get_running_loop().call_soon(self._back)
        away_ns = self._away_ns + now_ns - self._looked_ns
        return away_ns if self.left_ns is None else max(away_ns, now_ns - self.left_ns)

    def seen(self, now_ns: int) -> None:
        """One of the moments is attended to: what was waited for until then is no absence of later on."""
        on_time = self.due_ns is not None and now_ns - self.due_ns <= _NOTICED_NS
        waited_ns = run_queue_wait_ns() or 0
        if on_time and self._looked_ns is None and waited_ns - self._waited_ns <= _NOTICED_NS:
            self._waited_ns = waited_ns
        else:
            self.away_ns(now_ns)  # which holds for the rest of this turn, too

    def _back(self) -> None:
        """The turn is over: the loop looks again at what is ready."""
        self._looked_ns = None


class LagProbe:
    """How late the event loop attends to what is ready, sampled by a timer that it must serve.

    The moments are random (a Poisson process): a timer as regular as an engine's steps would see the loop in one and
    the same phase of them for a whole run. A moment that passes while the loop is busy counts with its own delay.
    Without timerfd each sample may hold a millisecond of the loop's own rounding. Each is a wake-up of its own, and
    costs more than a token: they come no more often than the events of a stream, as far as those are known.

    Args:
        loop: The event loop.
        attention: Is told of the moments.
        mean_gap_ns: Between two samples, on average.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        attention: Attention | None = None,
        *,
        mean_gap_ns: int = _MEAN_GAP_NS,
    ) -> None:
        self.lags_ns: list[int] = []
        self._attention = attention or Attention(mean_gap_ns=mean_gap_ns)
        self._mean_gap_ns = mean_gap_ns
        self._draw = random.Random()  # noqa: S311 - nothing depends on its seed
        self._alarm = Alarm(loop, self._rung)
        self._due_ns = self._attention.due_ns = time.monotonic_ns() + self._gap_ns()
        self._alarm.set(self._due_ns)

    def close(self) -> None:
        """Sample no more."""
        self._attention.due_ns = None
        self._alarm.close()

    def _gap_ns(self) -> int:
        mean_ns = max(self._mean_gap_ns, min(self._attention.event_gap_ns, _RAREST_GAP_NS))
        self._attention.mean_gap_ns = mean_ns
        return 1 + round(self._draw.expovariate(1 / mean_ns))

    def _rung(self) -> None:
        now = time.monotonic_ns()
        self._attention.seen(now)
        due_ns = self._due_ns
        while due_ns <= now:
            self.lags_ns.append(now - due_ns)
            due_ns += self._gap_ns()
        self._due_ns = self._attention.due_ns = due_ns
        self._alarm.set(due_ns)


def run_queue_wait_ns() -> int | None:
    """Time this process was ready to run and had no core (second field of Linux's schedstat)."""
    try:
        return int(os.pread(_schedstat(), 64, 0).split()[1])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _schedstat() -> int:
    return os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)


def _timer() -> tuple[ctypes.CDLL | None, int | None]:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return None, None
    return (libc, fd) if fd >= 0 else (None, None)
