"""Reads that bear the kernel's stamps, on real sockets."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable

import pytest

from pytest_vllmperf.load import kernel_clock, stamped_transport
from pytest_vllmperf.load.alarm import Attention, LagProbe
from pytest_vllmperf.load.kernel_clock import KernelClock
from pytest_vllmperf.load.stamped_transport import StampedSockets, StampedTransport, connect_stamped
from pytest_vllmperf.load.target import Target

pytestmark = pytest.mark.skipif(not KernelClock().works, reason="this system does not stamp what arrives")
Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Kept:
    """A protocol that keeps what it is told."""

    def __init__(self) -> None:
        self.transport: StampedTransport | None = None
        self.reads: list[tuple[int, bytes, int]] = []
        self.ended_by_peer = False
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.read = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StampedTransport)
        self.transport = transport

    def arrived(self, at_ns: int, data: bytes, late_ns: int) -> None:
        self.reads.append((at_ns, data, late_ns))
        self.read.set()

    def eof_received(self) -> bool | None:
        self.ended_by_peer = True
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def with_server(served: Served, client: Callable[[Kept, KernelClock], Awaitable[None]]) -> Kept:
    """Connect to a server of one connection, and run ``client``."""
    clock = KernelClock()

    async def run() -> Kept:
        over = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await served(reader, writer)
            writer.close()
            over.set()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        kept = Kept()
        transport = await connect_stamped("127.0.0.1", server.sockets[0].getsockname()[1], kept, StampedSockets(clock))
        try:
            await asyncio.wait_for(client(kept, clock), 30)
        finally:
            transport.abort()
            await asyncio.wait_for(over.wait(), 30)
            server.close()
        return kept

    return asyncio.run(run())


def test_a_read_bears_the_moment_of_its_arrival_and_not_of_its_reading() -> None:
    sent: list[int] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(2)
        sent.append(time.monotonic_ns())
        writer.write(b"token")
        await writer.drain()
        time.sleep(0.2)  # noqa: ASYNC251 - the client's loop as well: it reads late
        await reader.read()

    async def client(kept: Kept, _clock: KernelClock) -> None:
        assert kept.transport is not None
        kept.transport.write(b"go")
        await kept.read.wait()

    kept = with_server(served, client)
    ((at_ns, data, late_ns),) = kept.reads
    assert data == b"token"
    assert -1_000_000 < at_ns - sent[0] < 100_000_000, "read 200 ms after it came"
    assert late_ns > 150_000_000


def test_a_payload_larger_than_any_buffer_is_written_whole() -> None:
    payload = bytes(range(256)) * 40_000
    got = bytearray()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(got) < len(payload):
            got.extend(await reader.read(65_536))
        writer.write(b"done")
        await writer.drain()

    async def client(kept: Kept, _clock: KernelClock) -> None:
        assert kept.transport is not None
        kept.transport.write(payload[:-7])
        kept.transport.write(payload[-7:])
        await kept.lost

    kept = with_server(served, client)
    assert kept.ended_by_peer
    assert bytes(got) == payload
    assert b"".join(data for _, data, _ in kept.reads) == b"done"


def test_a_reset_is_told_with_its_cause() -> None:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async def client(kept: Kept, _clock: KernelClock) -> None:
        assert kept.transport is not None
        kept.transport.write(b"x")
        assert isinstance(await kept.lost, ConnectionResetError)
        assert kept.transport.is_closing()
        kept.transport.write(b"nobody reads this")

    assert with_server(served, client).reads == []


@pytest.mark.parametrize("trouble", ["no-stamps", "clock-set-back", "clock-set-forward"])
def test_without_a_stamp_to_be_believed_it_is_the_moment_of_reading(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1):
            sent.append(time.monotonic_ns())
            writer.write(b"token")

    async def client(kept: Kept, clock: KernelClock) -> None:
        assert kept.transport is not None
        if trouble == "no-stamps":
            monkeypatch.setattr(stamped_transport, "SO_TIMESTAMPNS", 9999)
        clock.offset_ns += {"no-stamps": 0, "clock-set-back": -3600, "clock-set-forward": 3600}[trouble] * 10**9
        for _ in range(2):
            kept.read.clear()
            kept.transport.write(b"x")
            await kept.read.wait()

    kept = with_server(served, client)
    assert len(kept.reads) == 2
    for (at_ns, _, late_ns), sent_ns in zip(kept.reads, sent, strict=True):
        assert abs(at_ns - sent_ns) < 1_000_000_000
        assert late_ns < 1_000_000_000


def test_a_system_that_stamps_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_clock._stamps_arrivals.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(kernel_clock, "SO_TIMESTAMPNS", 9999)
        assert not KernelClock().works
        assert Target.of("http://127.0.0.1:8000").clock is None
    kernel_clock._stamps_arrivals.cache_clear()
    assert Target.of("http://127.0.0.1:8000").clock is not None


def test_an_address_that_refuses_is_an_error_and_leaves_no_socket() -> None:
    async def run() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await connect_stamped("127.0.0.1", port, Kept(), StampedSockets(KernelClock()))

    asyncio.run(run())


def test_a_loop_that_was_kept_busy_knows_for_how_long() -> None:
    async def run() -> tuple[int, int]:
        attention = Attention(mean_gap_ns=1_000_000)
        probe = LagProbe(asyncio.get_running_loop(), attention, mean_gap_ns=1_000_000)
        await asyncio.sleep(0.05)
        at_ease_ns = attention.away_ns(time.monotonic_ns())
        time.sleep(0.3)  # noqa: ASYNC251 - in its way on purpose
        away_ns = attention.away_ns(time.monotonic_ns())
        probe.close()
        return at_ease_ns, away_ns

    at_ease_ns, away_ns = asyncio.run(run())
    assert away_ns == pytest.approx(300_000_000, rel=0.2)
    assert at_ease_ns < away_ns / 2


def test_many_sockets_share_wake_ups_and_each_read_keeps_its_own_stamp() -> None:
    streams, rounds = 130, 50

    async def run() -> tuple[StampedSockets, list[Kept], list[int]]:
        sockets = StampedSockets(KernelClock())
        peers: list[asyncio.StreamWriter] = []
        everybody = asyncio.Event()

        async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peers.append(writer)
            if len(peers) == streams:
                everybody.set()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        kept = []
        for _ in range(streams):
            one = Kept()
            one.transport = await connect_stamped("127.0.0.1", port, one, sockets)
            kept.append(one)
        await asyncio.wait_for(everybody.wait(), 30)
        sent = []
        for _ in range(rounds):
            for writer in peers:
                sent.append(time.monotonic_ns())
                writer.write(b"token")
            await asyncio.sleep(0.02)  # the pace of the streams
        for one in kept:
            while len(one.reads) < rounds:
                one.read.clear()
                await asyncio.wait_for(one.read.wait(), 30)
        for one in kept:
            assert one.transport is not None
            one.transport.abort()
        for writer in peers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(writer.wait_closed(), 30)
        server.close()
        assert sockets._ready is None, "nothing is left open"
        return sockets, kept, sent

    sockets, kept, sent = asyncio.run(run())
    assert sockets.moderation.gap_ns > 10_000_000
    assert sockets.moderation.pause_ns() >= 1_000_000, "by now it looks away first"
    assert sockets.clock.attention.left_ns is None
    assert [data for one in kept for _, data, _ in one.reads] == [b"token"] * (streams * rounds)
    stamps = sorted(at_ns for one in kept for at_ns, _, _ in one.reads)
    for at_ns, sent_ns in zip(stamps, sent, strict=True):
        assert -1_000_000 < at_ns - sent_ns < 100_000_000


def test_a_pause_ends_when_its_last_socket_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[int]:
        clock = KernelClock()
        sockets = StampedSockets(clock)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await reader.read(1)
                writer.write(b"hello")
                await reader.read()
            writer.close()
            over.set()

        over = asyncio.Event()
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sockets.moderation._limit_ns, sockets.moderation._expected = 500_000_000, 9.0
        left: list[int] = []
        for _ in range(2):
            kept = Kept()
            transport = await connect_stamped("127.0.0.1", port, kept, sockets)
            assert sockets._ready is not None
            looked_away = asyncio.Event()
            monkeypatch.setattr(sockets._ready, "wait", lambda _pause_ns, seen=looked_away: seen.set())
            transport.write(b"?")
            await asyncio.wait_for(looked_away.wait(), 30)
            assert [data for _, data, _ in kept.reads] == [b"hello"], "it reads first"
            left.append(clock.attention.away_ns(time.monotonic_ns()))
            transport.abort()
            assert clock.attention.left_ns is None
            await asyncio.wait_for(over.wait(), 30)
            over.clear()
        server.close()
        return left

    assert all(left_ns > 0 for left_ns in asyncio.run(run()))


def test_pauses_hide_no_absence() -> None:
    async def run() -> list[int]:
        away: list[int] = []
        sockets = StampedSockets(KernelClock())
        attention = sockets.clock.attention
        sockets.moderation._limit_ns, sockets.moderation._expected = 2_000_000, 9.0
        probe = LagProbe(asyncio.get_running_loop(), attention)
        kept = Kept()
        arrived, kept.arrived = (
            kept.arrived,
            lambda at_ns, data, late_ns: (  # type: ignore[method-assign]
                away.append(attention.away_ns(at_ns + late_ns)) or arrived(at_ns, data, late_ns)
            ),
        )
        with socket.create_server(("127.0.0.1", 0)) as server:
            transport = await connect_stamped("127.0.0.1", server.getsockname()[1], kept, sockets)
            with server.accept()[0] as peer:
                for _ in range(5):
                    await asyncio.sleep(0.02)
                    kept.read.clear()
                    peer.send(b"first ")
                    time.sleep(0.2)  # noqa: ASYNC251 - as if it were stopped
                    peer.send(b"second")
                    await asyncio.wait_for(kept.read.wait(), 30)
                transport.abort()
        probe.close()
        return away

    away = asyncio.run(run())
    assert len(away) == 5
    assert sorted(away)[2] >= 150_000_000, "a moment that is attended to at the end of a turn may hide one of them"
