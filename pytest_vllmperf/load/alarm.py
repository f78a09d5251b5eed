"""Precise timers: event loops round to milliseconds, which is as long as a small model's token."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import time
from collections.abc import Callable

__all__ = ["Alarm", "LagProbe"]

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_BILLION = 1_000_000_000


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
        spec = _TimerSpec(value=_TimeSpec(*divmod(max(1, at_ns), _BILLION)))
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never call back again."""
        self._cancel_handle()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _expired(self) -> None:
        assert self._fd is not None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set anew between its expiry and this call
        self._callback()

    def _cancel_handle(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class LagProbe:
    """How late the event loop attends to what is ready, sampled by a timer that it must serve.

    The moments are random (a Poisson process): a timer as regular as an engine's steps would see the loop in one and
    the same phase of them for a whole run. A moment that passes while the loop is busy counts with its own delay.
    Without timerfd each sample may hold a millisecond of the loop's own rounding.

    Args:
        loop: The event loop.
        mean_period_ns: Between two samples, on average.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, mean_period_ns: int = 10_000_000) -> None:
        self.lags_ns: list[int] = []
        self._rate = 1 / mean_period_ns
        self._draw = random.Random()  # noqa: S311 - nothing depends on its seed
        self._due_ns = time.monotonic_ns() + self._gap_ns()
        self._alarm = Alarm(loop, self._rung)
        self._alarm.set(self._due_ns)

    def close(self) -> None:
        """Sample no more."""
        self._alarm.close()

    def _gap_ns(self) -> int:
        return 1 + round(self._draw.expovariate(self._rate))

    def _rung(self) -> None:
        now = time.monotonic_ns()
        while self._due_ns <= now:
            self.lags_ns.append(now - self._due_ns)
            self._due_ns += self._gap_ns()
        self._alarm.set(self._due_ns)


def _timer() -> tuple[ctypes.CDLL | None, int | None]:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return None, None
    return (libc, fd) if fd >= 0 else (None, None)
