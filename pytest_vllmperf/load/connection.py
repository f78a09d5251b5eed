"""One keep-alive connection. While the clock runs it stamps and stashes; understanding comes later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

from pytest_vllmperf.domain.records import RequestOutcome
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.http_answer import AnswerFraming
from pytest_vllmperf.load.stamped_transport import StampedSockets

__all__ = ["Connection"]

_END = b"0\r\n\r\n"
"""How a chunked answer ends. A hint only: the data of a chunk may end in it too."""

_KEPT = len(_END)
"""Reads left to look at for the end of the answer: as many as it has bytes, should each come alone."""

_OPENING = 4
"""Reads among which the first token is."""
_UNREAD_NS = 500_000
"""Nobody reads sooner than that for sure."""

_now = time.monotonic_ns


class Connection(asyncio.Protocol):
    """Carries one request at a time.

    Args:
        on_end: Called with the connection and the exchange when an answer is over, for whatever reason;
            ``usable`` then tells whether another request may be sent.
        sockets: What reads it, where reads bear the kernel's stamps.
    """

    __slots__ = (
        *("_exchange", "_fed", "_framing", "_loop", "_on_end", "_opening", "_reads", "_sockets", "_transport"),
        *("idle_since_ns", "usable"),
    )

    def __init__(self, on_end: Callable[[Connection, Exchange], None], sockets: StampedSockets | None = None) -> None:
        self.usable = False
        self.idle_since_ns = 0
        self._on_end = on_end
        self._sockets = sockets
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._exchange: Exchange | None = None
        self._reads: list[tuple[int, bytes]] = []
        self._framing = AnswerFraming()
        self._fed = 0
        self._opening = True
        """Each read is looked at: the first token may be in it, or the answer comes in no chunks."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclasses
        self.usable = True
        self.idle_since_ns = _now()

    def send(self, exchange: Exchange) -> None:
        """Write the request; the connection is busy until ``on_end``."""
        assert self._transport is not None
        self._exchange = exchange
        self._reads = exchange.reads
        self._framing = AnswerFraming()
        self._fed = 0
        self._opening = True
        self.usable = False
        # Before the write, not after it: the bytes wake the server up, which may take this very core for milliseconds.
        exchange.written_ns = _now()
        self._transport.write(exchange.payload)

    def data_received(self, data: bytes) -> None:
        """Take what no kernel has stamped: what came through TLS."""
        self.arrived(_now(), data, 0)

    def arrived(self, at_ns: int, data: bytes, late_ns: int) -> None:
        """Stash what arrived at ``at_ns``, read ``late_ns`` later; look closer only where the answer may be over."""
        self._reads.append((at_ns, data))
        if self._opening:
            self._look_at_opening(at_ns, data, late_ns)
        elif data.endswith(_END) or (len(data) < len(_END) and self._tail() == _END):
            self._check_soon()

    def _look_at_opening(self, at_ns: int, data: bytes, late_ns: int) -> None:
        if not self._framing.chunked or data.endswith(_END) or (len(data) < len(_END) and self._tail() == _END):
            self._check_soon()
        if len(self._reads) > _OPENING:
            self._opening = not self._framing.chunked
        elif self._sockets is not None:
            attention = self._sockets.clock.attention
            self._note_unread(at_ns, attention.away_ns(at_ns + late_ns) - late_ns)

    def _check_soon(self) -> None:
        """At the end of this turn of the loop, so that every read that is ready is stamped first."""
        self._loop.call_soon(self._check_end)

    def eof_received(self) -> None:
        """The server closed its side: never reuse."""
        self.usable = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever was under way is over."""
        self.usable = False
        self._check_end()
        if self._exchange is None:
            return
        if exc is None and self._framing.ended_by_close():
            self._finish(None, None)
            return
        cause = f": {exc}" if exc else ""
        when = "in the middle of the answer" if self._reads else "before any answer"
        self._finish(RequestOutcome.CONNECTION_ERROR, f"the server closed the connection {when}{cause}")

    def time_out(self, detail: str) -> None:
        """End the request under way as timed out, and the connection with it."""
        self._finish(RequestOutcome.TIMEOUT, detail)

    def drain(self) -> list[tuple[int, bytes]]:
        """Hand over what has been read of the answer under way, but for its last few reads."""
        self._check_end()
        exchange, reads = self._exchange, self._reads
        if exchange is None or len(reads) <= _KEPT:
            return []
        taken = reads[:-_KEPT]
        del reads[:-_KEPT]
        self._fed -= len(taken)
        exchange.taken += len(taken)
        return taken

    def abandon(self) -> None:
        """Give up the request under way without a word, and the connection with it."""
        self._exchange = None
        self._reads = []
        self.close()

    def close(self) -> None:
        """Drop the connection at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _note_unread(self, at_ns: int, unread_ns: int) -> None:
        """Of the reads that open an answer: what they brought may have come so much earlier than their last bytes."""
        if unread_ns > _UNREAD_NS and self._exchange is not None and not self._exchange.taken:
            self._exchange.unread.append((at_ns, unread_ns))

    def _tail(self) -> bytes:
        """The last bytes read, however the reads fell."""
        tail = b""
        for _, data in reversed(self._reads):
            tail = data[-len(_END) :] + tail
            if len(tail) >= len(_END):
                break
        return tail[-len(_END) :]

    def _check_end(self) -> None:
        if self._exchange is None:
            if self._reads:
                self.close()  # bytes nobody asked for: this connection is out of step
            return
        fresh = [data for _, data in self._reads[self._fed :]]
        if not fresh:
            return
        self._fed += len(fresh)
        problem = self._framing.feed(b"".join(fresh))
        if problem is not None:
            self._finish(RequestOutcome.PROTOCOL_ERROR, f"the answer is not HTTP: {problem}")
        elif self._framing.complete:
            self._finish(None, None)

    def _finish(self, outcome: RequestOutcome | None, detail: str | None) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._exchange = None
        self._reads = []
        now = _now()
        exchange.outcome, exchange.detail = outcome, detail
        exchange.ended_ns = exchange.reads[-1][0] if outcome is None else now
        closing = self._transport is None or self._transport.is_closing()
        self.usable = outcome is None and self._framing.reusable and not closing
        self.idle_since_ns = now
        if not self.usable:
            self.close()
        if self._sockets is not None and exchange.written_ns is not None:
            self._sockets.moderation.answered(exchange.ended_ns - exchange.written_ns)
        self._on_end(self, exchange)
