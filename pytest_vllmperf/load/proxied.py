"""Requests through a proxy, by aiohttp: slower than a bare connection, with the same records."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp

from pytest_vllmperf.domain.records import RequestOutcome

if TYPE_CHECKING:
    from pytest_vllmperf.load.exchange import Exchange
    from pytest_vllmperf.load.target import Ended, Target

__all__ = ["ProxiedConnection"]

_now = time.monotonic_ns


class ProxiedConnection:
    """Carries one request at a time, as :class:`~pytest_vllmperf.load.connection.Connection` does.

    The reads are given the framing they had lost, so that everything after reads them alike. ``written_ns`` is when
    aiohttp was asked to send: connecting to the proxy is part of what is measured.
    """

    def __init__(self, target: Target, on_end: Ended) -> None:
        self.usable = False
        self.idle_since_ns = 0
        self._target = target
        self._on_end = on_end
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None

    def send(self, exchange: Exchange) -> None:
        """Send the request; busy until ``on_end``."""
        self._exchange = exchange
        self._task = asyncio.get_running_loop().create_task(self._carry(exchange))

    def drain(self) -> list[tuple[int, bytes]]:
        """Hand over what has been read so far."""
        if self._exchange is None or len(self._exchange.reads) < 2:
            return []
        taken = self._exchange.reads[:-1]
        del self._exchange.reads[:-1]
        self._exchange.taken += len(taken)
        return taken

    def time_out(self, detail: str) -> None:
        """End the request under way as timed out."""
        self._cancel()
        self._finish(RequestOutcome.TIMEOUT, detail)

    def abandon(self) -> None:
        """Give up the request under way without a word."""
        self._exchange = None
        self._cancel()

    def close(self) -> None:
        """Drop it."""
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _carry(self, exchange: Exchange) -> None:
        head, _, body = exchange.payload.partition(b"\r\n\r\n")
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path = request.split(" ")[1]
        target = self._target
        url = f"{'https' if target.tls else 'http'}://{headers.pop('Host')}{path}"
        try:
            async with aiohttp.ClientSession(
                read_bufsize=1 << 20, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
            ) as session:
                exchange.written_ns = _now()
                async with session.post(
                    url, data=body, headers=headers, proxy=target.proxy, ssl=target.tls or True, allow_redirects=False
                ) as answer:
                    kind = answer.headers.get("Content-Type", "")
                    opening = (
                        f"HTTP/1.1 {answer.status} -\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
                    )
                    exchange.reads.append((_now(), opening.encode("latin-1")))
                    async for piece in answer.content.iter_any():
                        exchange.reads.append((_now(), b"%x\r\n%b\r\n" % (len(piece), piece)))
                    exchange.reads.append((_now(), b"0\r\n\r\n"))
        except (aiohttp.ClientError, OSError) as error:
            when = "in the middle of the answer" if exchange.reads else "before any answer"
            said = str(error) or type(error).__name__
            self._finish(RequestOutcome.CONNECTION_ERROR, f"through the proxy: {said} ({when})")
            return
        self._finish(None, None)

    def _finish(self, outcome: RequestOutcome | None, detail: str | None) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._exchange = None
        exchange.outcome, exchange.detail = outcome, detail
        exchange.ended_ns = exchange.reads[-1][0] if outcome is None else _now()
        self._on_end(self, exchange)
