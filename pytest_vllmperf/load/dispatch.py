"""Sends the planned requests: closed loop, open loop, or an open loop under a cap."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_vllmperf.domain.records import RequestOutcome
from pytest_vllmperf.load.alarm import Alarm
from pytest_vllmperf.load.connection import Connection
from pytest_vllmperf.load.exchange import Exchange

__all__ = ["Dispatcher", "Target"]

_LONGEST_IDLE_NS = 2_000_000_000
"""A connection idle for longer is not reused: servers close idle ones (uvicorn after 5 s), and a request written
into a closing connection is lost through nobody's fault."""
_CONNECT_AHEAD_S = 10.0

_now = time.monotonic_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go. ``tls`` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, base_url: str) -> Target:
        """Read a base URL such as ``http://127.0.0.1:8000``."""
        url = urlsplit(base_url)
        secure = url.scheme == "https"
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url {base_url!r} must look like http://host:port or https://host:port")
        tls = ssl.create_default_context() if secure else None
        return cls(host=url.hostname, port=url.port or (443 if secure else 80), tls=tls)


class Dispatcher:
    """Drives all exchanges once, in order; one failing never ends the run.

    Args:
        target: The server.
        exchanges: The requests. One that follows another is sent as soon as that is over.
        offsets_ns: When each is due after the start (open loop), or None (closed loop).
        max_concurrency: Requests in flight at most, or None.
        timeout_s: For each request, from its dispatch.
        on_end: Called with each exchange when it is over, outside the path of the reads.
    """

    def __init__(
        self,
        *,
        target: Target,
        exchanges: Sequence[Exchange],
        offsets_ns: Sequence[int] | None,
        max_concurrency: int | None,
        timeout_s: float,
        on_end: Callable[[Exchange], None] = lambda _exchange: None,
    ) -> None:
        self.finished = 0
        self._target = target
        self._exchanges = exchanges
        self._offsets_ns = offsets_ns
        self._cap = max_concurrency or len(exchanges)
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._queue = deque(e for e in exchanges if e.follows is None)
        self._followers = {e.follows: e for e in exchanges if e.follows is not None}
        self._in_flight = 0
        self._room_since_ns = 0
        self._idle: list[Connection] = []
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._under_way: dict[int, tuple[Exchange, Connection | None]] = {}
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._started_ns = 0

    async def run(self) -> tuple[int, int]:
        """Send everything and wait for every answer; returns when the clock started and stopped."""
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        self._alarm = Alarm(self._loop, self._fill)
        if self._offsets_ns is None:
            await self._connect_ahead(min(self._cap, len(self._exchanges)))
        try:
            self._started_ns = _now()
            self._fill()
            await self._done
            return self._started_ns, _now()
        finally:
            self._alarm.close()
            for connection in self._idle:
                connection.close()
            await asyncio.sleep(0)

    async def _connect_ahead(self, count: int) -> None:
        """Open a closed loop's connections before the clock starts. A refusal shows when the request is sent."""
        attempts = [self._loop.create_task(self._connect()) for _ in range(count)]
        opened, late = await asyncio.wait(attempts, timeout=min(_CONNECT_AHEAD_S, self._timeout_s))
        for attempt in late:
            attempt.cancel()
        self._idle += [attempt.result() for attempt in opened if attempt.exception() is None]

    async def _connect(self) -> Connection:
        target = self._target
        _, connection = await self._loop.create_connection(
            lambda: Connection(self._answered), target.host, target.port, ssl=target.tls
        )
        return connection

    def _fill(self) -> None:
        """Send all that is due and has room; set the alarm for what comes next."""
        while self._queue and self._in_flight < self._cap:
            exchange = self._queue[0]
            now = _now()
            if self._offsets_ns is None:
                exchange.intended_ns = exchange.due_ns = now
            else:
                exchange.intended_ns = self._started_ns + self._offsets_ns[exchange.index]
                if exchange.intended_ns > now:
                    self._alarm.set(exchange.intended_ns)
                    return
                exchange.due_ns = max(exchange.intended_ns, self._room_since_ns)
            self._queue.popleft()
            self._in_flight += 1
            self._dispatch(exchange, now)

    def _dispatch(self, exchange: Exchange, now: int) -> None:
        exchange.dispatched_ns = now
        connection = self._idle_connection(now)
        self._under_way[exchange.index] = (exchange, connection)
        if connection is None:
            task = self._loop.create_task(self._connect_and_send(exchange))
            self._connecting[exchange.index] = task
        else:
            connection.send(exchange)
        self._timers[exchange.index] = self._loop.call_later(self._timeout_s, self._time_out, exchange, connection)

    def _idle_connection(self, now: int) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since_ns <= _LONGEST_IDLE_NS:
                return connection
            connection.close()
        return None

    async def _connect_and_send(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            self._fail(exchange, RequestOutcome.CONNECTION_ERROR, f"cannot connect: {error}")
            return
        self._connecting.pop(exchange.index, None)
        self._under_way[exchange.index] = (exchange, connection)
        timer = self._timers.pop(exchange.index)
        timer.cancel()
        left_s = max(0.0, timer.when() - self._loop.time())
        self._timers[exchange.index] = self._loop.call_later(left_s, self._time_out, exchange, connection)
        connection.send(exchange)

    def call_off(self, why: str) -> None:
        """End everything at once: what is under way is timed out, what was never sent has no connection."""
        waiting, self._queue = list(self._queue), deque()
        followers, self._followers = list(self._followers.values()), {}
        self._alarm.close()
        for exchange in (*waiting, *followers):
            if not exchange.dispatched_ns:
                exchange.intended_ns = exchange.due_ns = exchange.dispatched_ns = _now()
                self._in_flight += 1
                self._fail(exchange, RequestOutcome.CONNECTION_ERROR, f"never sent: {why}")
        for exchange, connection in list(self._under_way.values()):
            self._time_out(exchange, connection, f"not finished: {why}")

    def _time_out(self, exchange: Exchange, connection: Connection | None, detail: str = "") -> None:
        detail = detail or f"not finished within timeout_s={self._timeout_s:g}"
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

    def _answered(self, connection: Connection, exchange: Exchange) -> None:
        if connection.usable:
            self._idle.append(connection)
        self._over(exchange)

    def _over(self, exchange: Exchange) -> None:
        self._connecting.pop(exchange.index, None)
        self._under_way.pop(exchange.index, None)
        timer = self._timers.pop(exchange.index, None)
        if timer is not None:
            timer.cancel()
        if self._in_flight >= self._cap:
            self._room_since_ns = _now()
        self._in_flight -= 1
        self.finished += 1
        if (follower := self._followers.get(exchange.index)) is not None:
            self._queue.appendleft(follower)
        self._fill()
        self._on_end(exchange)
        if self.finished == len(self._exchanges) and not self._done.done():
            self._done.set_result(None)
