"""Turns raw reads into records: after the run, and earlier where their bytes would fill the memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from pytest_vllmperf.domain.records import RequestRecord
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.stream import AnswerReading, record_of
from pytest_vllmperf.load.target import Carrier

__all__ = ["Compactor"]

_MOST_STASHED_BYTES = 16_000_000
_READ_OVERHEAD_BYTES = 150
"""What a read takes beside its bytes: the objects that hold them and the stamp."""
_SLICE = 64
"""Reads understood in one turn of the loop, about 0.1 ms: its sockets are attended to in between."""
_TAIL = 3
"""Reads at the end of an answer in which its fault would show."""
_ALL = 1 << 62
_OK = b"HTTP/1.1 200"

Sample = Callable[[RequestRecord], float | None]


class Compactor:
    """Keeps what is stashed within bounds, and knows at once what has failed.

    Args:
        output_tokens: How many were asked, by the request's index.
        exact: Whether exactly as many must come.
        most_stashed_bytes: Beyond that, reads are understood while the load runs, bit by bit.
        sample: A latency wanted of every finished request while the load runs; None wants none.
    """

    def __init__(
        self,
        *,
        output_tokens: Mapping[int, int],
        exact: bool,
        most_stashed_bytes: int = _MOST_STASHED_BYTES,
        sample: Sample | None = None,
    ) -> None:
        self.failed = 0
        self.samples: list[float] = []
        self.ttft_s: list[float] = []
        self._output_tokens = output_tokens
        self._exact = exact
        self._most_stashed_bytes = most_stashed_bytes
        self._sample = sample
        self._stashed_bytes = 0
        self._ended_reads = 0
        self._ended: deque[Exchange] = deque()
        self._work: deque[tuple[Exchange, list[tuple[int, bytes]], bool]] = deque()
        self._scheduled = False

    def add(self, exchange: Exchange) -> None:
        """Take an exchange that is over. It keeps only what is needed for its record."""
        exchange.payload = b""
        reads = exchange.reads
        self._stashed_bytes += _weight(exchange)
        self._ended_reads += len(reads) + exchange.taken
        if exchange.taken:
            self._put(exchange)
            return
        if len(reads) > 1 and exchange.written_ns is not None:
            self.ttft_s.append((reads[1][0] - exchange.written_ns) * 1e-9)
        if self._sample is not None or _looks_failed(exchange):
            self._put(exchange)
            return
        self._ended.append(exchange)
        if self._stashed_bytes > self._most_stashed_bytes:
            self._put(self._ended.popleft())

    def reads(self, in_flight: Iterable[tuple[Exchange, Carrier | None]]) -> int:
        """How many reads there were until now; takes some of what is in flight where too many lie there."""
        under_way = list(in_flight)
        stashed = sum(len(exchange.reads) for exchange, _ in under_way)
        count = self._ended_reads + stashed + sum(exchange.taken for exchange, _ in under_way)
        in_flight_bytes = sum(_weight(exchange) for exchange, _ in under_way)
        if self._stashed_bytes + in_flight_bytes > self._most_stashed_bytes:
            while self._ended:
                self._put(self._ended.popleft())
            for exchange, carrier in under_way:
                taken = [] if carrier is None else carrier.drain()
                if taken:
                    size = _size(taken)
                    exchange.weight -= size
                    self._stashed_bytes += size
                    self._work.append((exchange, taken, False))
            self._schedule()
        return count

    def finish(self) -> None:
        """Understand whatever is still waiting for it, when the clock has stopped."""
        while self._work:
            self._do_some(_ALL)

    def record(self, exchange: Exchange) -> RequestRecord:
        """The record of an exchange that is over, after :meth:`finish`."""
        return record_of(exchange, output_tokens=self._output_tokens[exchange.index], exact=self._exact)

    def _put(self, exchange: Exchange) -> None:
        reads, exchange.reads = exchange.reads, []
        self._work.append((exchange, reads, True))
        self._schedule()

    def _schedule(self) -> None:
        if self._work and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._do_some(_SLICE)
        self._schedule()

    def _do_some(self, most: int) -> None:
        """Understand up to ``most`` reads of the first in line."""
        exchange, reads, last = self._work[0]
        if exchange.reading is None:
            exchange.reading = AnswerReading()
        some = reads[:most]
        exchange.reading.feed(some)
        self._stashed_bytes -= _size(some)
        del reads[:most]
        if reads:
            return
        self._work.popleft()
        if last:
            self._look_at(exchange)

    def _look_at(self, exchange: Exchange) -> None:
        if self._sample is None and not exchange.taken and not exchange.suspect:
            return
        record = self.record(exchange)
        if not record.succeeded:
            self.failed += 1
        elif self._sample is not None and (value := self._sample(record)) is not None:
            self.samples.append(value)


def _size(reads: Sequence[tuple[int, bytes]]) -> int:
    return sum([len(data) for _, data in reads]) + _READ_OVERHEAD_BYTES * len(reads)


def _weight(exchange: Exchange) -> int:
    """Size of the reads that lie in it; each is looked at once, however often this is asked."""
    reads = exchange.reads
    exchange.weight += _size(reads[exchange.weighed - exchange.taken :])
    exchange.weighed = exchange.taken + len(reads)
    return exchange.weight


def _looks_failed(exchange: Exchange) -> bool:
    """What shows without understanding the answer: a broken connection, another status, an error at its end."""
    reads = exchange.reads
    end = b"".join(data for _, data in reads[-_TAIL:])
    exchange.suspect = (
        exchange.outcome is not None
        or not reads
        or not reads[0][1].startswith(_OK)
        or b"[DONE]" not in end
        or b'"error"' in end
    )
    return exchange.suspect
