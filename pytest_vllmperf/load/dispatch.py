"""Sends the planned requests: closed loop, open loop, or an open loop under a cap."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from pytest_vllmperf.domain.records import RequestOutcome
from pytest_vllmperf.load.alarm import Alarm
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.target import Carrier, Target

__all__ = ["Dispatcher"]

_LONGEST_IDLE_NS = 2_000_000_000
"""A connection idle for longer is not reused: servers close idle ones (uvicorn after 5 s), and a request written
into a closing connection is lost through nobody's fault."""
_CONNECT_AHEAD_S = 10.0
_ABANDON_AFTER_S = 2.0
"""What a request in flight still gets when the run is hopeless."""

_now = time.monotonic_ns


class Dispatcher:
    """Drives all exchanges once, in order; one failing never ends the run.

    Args:
        target: The server.
        exchanges: The requests. One that follows another is sent as soon as that is over.
        offsets_ns: When each is due after the start, by its index (open loop), or None (closed loop).
        max_concurrency: Requests in flight at most, or None.
        openings_ns: When each of a closed loop's slots opens after the start; None opens all at once.
        max_seconds: Nothing more is sent so long after the start; None sends all.
        keep_alive: Whether a connection carries another request once its answer is over.
        timeout_s: For each request, from its dispatch.
        on_end: Called with each exchange when it is over, outside the path of the reads.
    """

    def __init__(
        self,
        *,
        target: Target,
        exchanges: Sequence[Exchange],
        offsets_ns: Mapping[int, int] | None,
        max_concurrency: int | None,
        timeout_s: float,
        openings_ns: Sequence[int] | None = None,
        max_seconds: float | None = None,
        keep_alive: bool = True,
        on_end: Callable[[Exchange], None] = lambda _exchange: None,
    ) -> None:
        self.finished = 0
        self.unsent = 0
        self.abandoned = 0
        self.stopped: str | None = None
        self._target = target
        self._exchanges = exchanges
        self._offsets_ns = offsets_ns
        self._cap = max_concurrency or len(exchanges)
        self._openings_ns = openings_ns
        self._max_seconds = max_seconds
        self._keep_alive = keep_alive
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._queue = deque(e for e in exchanges if e.follows is None)
        self._followers = {e.follows: e for e in exchanges if e.follows is not None}
        self._room_since_ns = 0
        self._idle: list[Carrier] = []
        self._active: dict[int, tuple[Exchange, Carrier | None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._started_ns = 0

    def in_flight(self) -> Iterator[tuple[Exchange, Carrier | None]]:
        """Each request under way with its connection, None while that is being opened."""
        return iter(tuple(self._active.values()))

    async def connect_ahead(self) -> None:
        """Open a closed loop's connections before the clock starts. A refusal shows when the request is sent."""
        if self._offsets_ns is not None:
            return
        loop = asyncio.get_running_loop()
        count = min(self._cap, len(self._exchanges))
        attempts = [loop.create_task(self._target.connect(self._answered)) for _ in range(count)]
        if not attempts:
            return
        opened, late = await asyncio.wait(attempts, timeout=min(_CONNECT_AHEAD_S, self._timeout_s))
        for attempt in late:
            attempt.cancel()
        self._idle += [attempt.result() for attempt in opened if attempt.exception() is None]

    async def run(self, start_ns: int | None = None) -> tuple[int, int]:
        """Send everything and wait for every answer; returns when the clock started (``start_ns``) and stopped."""
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._alarm = Alarm(self._loop, self._fill)
        limit = None
        try:
            self._started_ns = max(_now(), start_ns or 0)
            if self._max_seconds is not None:
                left_s = (self._started_ns - _now()) * 1e-9 + self._max_seconds
                limit = self._loop.call_later(left_s, self.stop, f"max_seconds={self._max_seconds:g} were over")
            if self._exchanges:
                self._alarm.set(self._started_ns)
            else:
                self._done.set_result(None)
            await self._done
            return self._started_ns, _now()
        finally:
            if limit is not None:
                limit.cancel()
            self._alarm.close()
            for connection in self._idle:
                connection.close()
            await asyncio.sleep(0)

    def stop(self, reason: str, *, abandon: bool = False) -> None:
        """Send nothing more; with ``abandon`` what is in flight is given up after two seconds."""
        if self.stopped is None and (self._queue or self._followers or (abandon and self._active)):
            self.stopped = reason
            self.unsent = len(self._exchanges) - self.finished - len(self._active)
            self._queue.clear()
            self._followers.clear()
            if not self._active and not self._done.done():
                self._done.set_result(None)
        if abandon:
            self._loop.call_later(_ABANDON_AFTER_S, self._abandon)

    def call_off(self, why: str) -> None:
        """End everything at once: what is under way is timed out, what was never sent has no connection."""
        waiting, self._queue = list(self._queue), deque()
        followers, self._followers = list(self._followers.values()), {}
        for exchange in (*waiting, *followers):
            exchange.intended_ns = exchange.due_ns = exchange.dispatched_ns = _now()
            self._active[exchange.index] = exchange, None
            self._fail(exchange, RequestOutcome.CONNECTION_ERROR, f"never sent: {why}")
        for exchange, _ in list(self._active.values()):
            self._time_out(exchange, f"not finished: {why}")

    def _abandon(self) -> None:
        self.abandoned += len(self._active)
        for exchange, connection in self._active.values():
            self._timers.pop(exchange.index).cancel()
            if connection is not None:
                connection.abandon()
            elif (task := self._connecting.pop(exchange.index, None)) is not None:
                task.cancel()
        self._active.clear()
        if not self._done.done():
            self._done.set_result(None)

    def _fill(self) -> None:
        """Send all that is due and has room; set the alarm for what comes next."""
        while self._queue and len(self._active) < self._cap:
            exchange = self._queue[0]
            now = _now()
            if self._offsets_ns is None:
                if not self._has_opened(now):
                    return
                exchange.intended_ns = exchange.due_ns = now
            else:
                exchange.intended_ns = self._started_ns + self._offsets_ns[exchange.index]
                if exchange.intended_ns > now:
                    self._alarm.set(exchange.intended_ns)
                    return
                exchange.due_ns = max(exchange.intended_ns, self._room_since_ns)
            self._queue.popleft()
            self._dispatch(exchange, now)

    def _has_opened(self, now: int) -> bool:
        """Whether a closed loop's ramp has opened one slot more than are taken; if not, look again when it does."""
        if self._openings_ns is None:
            return True
        opened = bisect_right(self._openings_ns, now - self._started_ns)
        if len(self._active) < opened:
            return True
        if opened < len(self._openings_ns):
            self._alarm.set(self._started_ns + self._openings_ns[opened])
        return False

    def _dispatch(self, exchange: Exchange, now: int) -> None:
        exchange.dispatched_ns = now
        connection = self._idle_connection(now)
        self._active[exchange.index] = exchange, connection
        self._timers[exchange.index] = self._loop.call_later(self._timeout_s, self._time_out, exchange)
        if connection is None:
            task = self._loop.create_task(self._connect_and_send(exchange))
            self._connecting[exchange.index] = task
        else:
            connection.send(exchange)

    def _idle_connection(self, now: int) -> Carrier | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since_ns <= _LONGEST_IDLE_NS:
                return connection
            connection.close()
        return None

    async def _connect_and_send(self, exchange: Exchange) -> None:
        try:
            connection = await self._target.connect(self._answered)
        except OSError as error:
            self._fail(exchange, RequestOutcome.CONNECTION_ERROR, f"cannot connect: {error}")
            return
        self._connecting.pop(exchange.index, None)
        self._active[exchange.index] = exchange, connection
        connection.send(exchange)

    def _time_out(self, exchange: Exchange, detail: str = "") -> None:
        detail = detail or f"not finished within timeout_s={self._timeout_s:g}"
        _, connection = self._active[exchange.index]
        if connection is not None:
            connection.time_out(detail)
            return
        task = self._connecting.get(exchange.index)
        if task is not None:
            task.cancel()
            self._fail(exchange, RequestOutcome.TIMEOUT, f"{detail}: still connecting")

    def _fail(self, exchange: Exchange, outcome: RequestOutcome, detail: str) -> None:
        exchange.outcome, exchange.detail = outcome, detail
        exchange.ended_ns = _now()
        self._over(exchange)

    def _answered(self, connection: Carrier, exchange: Exchange) -> None:
        if connection.usable and self._keep_alive:
            self._idle.append(connection)
        else:
            connection.close()
        self._over(exchange)

    def _over(self, exchange: Exchange) -> None:
        self._connecting.pop(exchange.index, None)
        timer = self._timers.pop(exchange.index, None)
        if timer is not None:
            timer.cancel()
        if len(self._active) >= self._cap:
            self._room_since_ns = _now()
        del self._active[exchange.index]
        self.finished += 1
        follower = self._followers.pop(exchange.index, None)
        if follower is not None:
            self._queue.appendleft(follower)
        self._fill()
        self._on_end(exchange)
        if not self._active and not self._queue and not self._done.done():
            self._done.set_result(None)
