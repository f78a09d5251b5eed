"""Recorded answers, cut, split and corrupted, through the real connection: never an exception, a hang or a wrong
success."""

import asyncio
from itertools import pairwise

import fake_answers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.records import RequestOutcome, RequestRecord
from pytest_vllmperf.load.connection import Connection
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.http_answer import HttpReader
from pytest_vllmperf.load.stream import AnswerReading, record_of

ASKED = 8
STREAMED = ("plain", "role-first", "role+first", "four-tokens", "coalesced", "reasoning", "tool", "split-utf8", "crlf")
GOOD = (*STREAMED, "comments", "multi-line", "no-usage")
BAD = {
    "in-band-error": RequestOutcome.STREAM_ERROR,
    "no-done": RequestOutcome.TRUNCATED,
    "no-finish": RequestOutcome.TRUNCATED,
    "empty": RequestOutcome.NO_TOKENS,
    "wrong-length": RequestOutcome.WRONG_LENGTH,
    "garbage": RequestOutcome.PROTOCOL_ERROR,
}


def recorded(shape: str, *, chat: bool = True, chunked: bool = True) -> bytes:
    """The bytes of one whole answer of the fake engine."""
    script = fake_answers.Script(
        chat=chat,
        model="m",
        prompt_tokens=4,
        output_tokens=ASKED,
        texts=("é", "€", "🙂") if shape == "split-utf8" else (" tok",),
        finish_reason="length",
        usage_at_end=True,
        usage_on_each=True,
        ttft_s=0.0,
        itl_s=0.0,
        tokens_per_event=1,
        shape=shape,
    )
    body = [step.data for step in fake_answers.steps_of(script)]
    if not chunked:
        whole = b"".join(body)
        return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (
            len(whole),
            whole,
        )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in body) + b"0\r\n\r\n"


class _Wire(asyncio.Transport):
    """A transport that goes nowhere; dropping it is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def play(pieces: list[bytes], *, close: bool = True, drain_every: int = 0) -> tuple[RequestRecord | None, Connection]:
    """Let a connection receive ``pieces``, then the server's close; the record if the exchange ended.

    With ``drain_every`` what has been read is taken from under the connection again and again, to be compacted.
    """
    ended: list[Exchange] = []

    async def run() -> Connection:
        connection = Connection(lambda _c, exchange: ended.append(exchange))
        wire = _Wire()
        connection.connection_made(wire)
        exchange = Exchange(index=0, payload=b"POST", reading=AnswerReading())
        connection.send(exchange)
        for place, piece in enumerate(pieces):
            if wire.closed:
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
            if drain_every and place % drain_every == 0:
                exchange.reading.feed(connection.drain())
        await asyncio.sleep(0)
        if close and not ended:
            connection.eof_received()
            connection.connection_lost(None)
        return connection

    connection = asyncio.run(run())
    assert len(ended) <= 1
    return (record_of(ended[0], output_tokens=ASKED) if ended else None), connection


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


CUTS = st.lists(st.integers(0, 10_000), max_size=40)


DRAINS = st.integers(0, 7)


@given(shape=st.sampled_from(GOOD), chat=st.booleans(), chunked=st.booleans(), cuts=CUTS, drain=DRAINS)
def test_however_the_reads_fall_a_good_answer_is_the_same_success(
    shape: str, chat: bool, chunked: bool, cuts: list[int], drain: int
) -> None:
    """H24."""
    pieces = split(recorded(shape, chat=chat, chunked=chunked), cuts)
    record, connection = play(pieces, close=False, drain_every=drain)
    assert record is not None
    assert record.outcome is RequestOutcome.SUCCESS
    assert connection.usable
    if shape == "no-usage":
        assert record.output_tokens is None
    else:
        assert record.output_tokens == ASKED
        assert sum(record.event_tokens or ()) == ASKED
    assert len(record.event_ns) == (2 if shape == "four-tokens" else ASKED)


@given(shape=st.sampled_from(sorted(BAD)), chat=st.booleans(), cuts=CUTS, drain=DRAINS)
def test_however_the_reads_fall_a_bad_answer_is_the_same_failure(
    shape: str, chat: bool, cuts: list[int], drain: int
) -> None:
    record, _ = play(split(recorded(shape, chat=chat), cuts), drain_every=drain)
    assert record is not None
    assert record.outcome is BAD[shape]


@given(shape=st.sampled_from(GOOD), chunked=st.booleans(), keep=st.integers(0, 10_000), cuts=CUTS)
def test_no_truncated_answer_is_a_success(shape: str, chunked: bool, keep: int, cuts: list[int]) -> None:
    whole = recorded(shape, chunked=chunked)
    record, connection = play(split(whole[: keep % len(whole)], cuts))
    assert record is not None
    assert record.outcome is RequestOutcome.CONNECTION_ERROR
    assert "closed the connection" in (record.detail or "")
    assert not connection.usable


EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from("rid"), st.binary(max_size=4)), min_size=1, max_size=6
)


@given(shape=st.sampled_from((*GOOD, *BAD)), edits=EDITS, cuts=CUTS, drain=DRAINS)
def test_a_corrupted_answer_ends_and_a_success_is_still_a_consistent_one(
    shape: str, edits: list[tuple[int, str, bytes]], cuts: list[int], drain: int
) -> None:
    data = bytearray(recorded(shape))
    for place, kind, new in edits:
        at = place % (len(data) + 1)
        data[at : at + (0 if kind == "i" else max(1, len(new)))] = b"" if kind == "d" else new
    record, _ = play(split(bytes(data), cuts), drain_every=drain)
    assert record is not None
    assert list(record.event_ns) == sorted(record.event_ns)
    assert record.succeeded == (record.detail is None)
    if record.event_tokens is not None:
        assert sum(record.event_tokens) == record.output_tokens
        assert len(record.event_tokens) == len(record.event_ns)
    if record.succeeded:
        assert record.event_ns
        assert record.finish_reason
        assert record.status == 200
        assert record.output_tokens in (ASKED, None)
        body: list[bytes] = []
        HttpReader(body.append).feed([(0, bytes(data))])
        assert b"[DONE]" in b"".join(body)


@given(st.lists(st.binary(max_size=60), max_size=12))
def test_any_bytes_end_as_a_failure(pieces: list[bytes]) -> None:
    record, _ = play(pieces)
    assert record is not None
    assert not record.succeeded


def test_a_chunk_whose_data_looks_like_the_end_is_not_the_end() -> None:
    whole = recorded("plain", chat=False)
    head, _, rest = whole.partition(b"\r\n\r\n")
    trap = b": 10\r\n\r\n"
    pieces = [head + b"\r\n\r\n", b"%x\r\n%b" % (len(trap), trap), b"\r\n", rest]
    assert pieces[1].endswith(b"0\r\n\r\n")
    record, _ = play(pieces, close=False)
    assert record is not None
    assert record.succeeded


@pytest.mark.parametrize("drain", [0, 1, 9])
@pytest.mark.parametrize("shape", ["plain", "crlf", "split-utf8"])
def test_every_single_byte_may_come_alone(shape: str, drain: int) -> None:
    """H23."""
    whole = recorded(shape)
    record, _ = play([bytes([byte]) for byte in whole], close=False, drain_every=drain)
    assert record is not None
    assert record.succeeded


def test_bytes_after_the_answer_forbid_reuse() -> None:
    record, connection = play([recorded("plain") + b"HTTP/1.1 200 OK\r\n"], close=False)
    assert record is not None
    assert record.succeeded
    assert not connection.usable


def test_an_answer_that_ends_with_the_connection_is_whole() -> None:
    body = recorded("plain", chunked=False).partition(b"\r\n\r\n")[2]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    record, connection = play([head, body])
    assert record is not None
    assert record.succeeded
    assert not connection.usable
    cut, _ = play([head, body[: len(body) // 2]])
    assert cut is not None
    assert cut.outcome is RequestOutcome.TRUNCATED


def test_an_interim_answer_is_not_the_answer() -> None:
    record, _ = play([b"HTTP/1.1 100 Continue\r\n\r\n", recorded("plain")], close=False)
    assert record is not None
    assert record.succeeded
