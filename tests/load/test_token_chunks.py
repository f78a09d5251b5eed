"""Chunks that are taken without being parsed tell what parsing them would have told."""

import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.records import RequestOutcome, RequestRecord
from pytest_vllmperf.load import stream
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.stream import record_of
from pytest_vllmperf.load.token_chunks import TokenChunk

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, *, key: str = "text", finish: str | None = None, ascii_only: bool = False) -> bytes:
    said = {"text": text} if key == "text" else {"delta": {key: text}}
    body = {
        "id": "cmpl-1",
        "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": finish}],
        "usage": None,
    }
    return b"data: " + json.dumps(body, separators=(",", ":"), ensure_ascii=ascii_only).encode() + b"\n\n"


def answer(texts: list[str], *, key: str = "text", ascii_only: bool = False) -> list[bytes]:
    """The reads of a whole answer, one event in each."""
    usage = b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": len(texts)}}).encode() + b"\n\n"
    last = len(texts) - 1
    events = [
        event(t, key=key, finish="length" if i == last else None, ascii_only=ascii_only) for i, t in enumerate(texts)
    ]
    return [HEAD, *(chunk(data) for data in (*events, usage, DONE)), END]


def read(reads: list[bytes], *, asked: int, parse_all: bool = False, bit_by_bit: int = 0) -> RequestRecord:
    """The record of these reads; ``parse_all`` takes no chunk as read, ``bit_by_bit`` reads so many at once."""
    stamped = [(100 * (i + 1), data) for i, data in enumerate(reads)]
    reading = stream.AnswerReading()
    if parse_all:
        reading._patience = 0
    while bit_by_bit and len(stamped) > bit_by_bit:
        reading.feed(stamped[:bit_by_bit])
        del stamped[:bit_by_bit]
    exchange = Exchange(index=0, payload=b"", written_ns=1, ended_ns=99_999, reads=stamped, reading=reading)
    return record_of(exchange, output_tokens=asked)


TEXT = st.text(max_size=6) | st.sampled_from([" tok", "\n", '"', "\\", "é", "", "\x00", "🙂", "data: "])
TEXTS = st.lists(TEXT, max_size=12)
KEYS = st.sampled_from(["text", "content", "reasoning", "reasoning_content", "role"])


@given(texts=TEXTS, key=KEYS, ascii_only=st.booleans(), bit_by_bit=st.integers(0, 4))
def test_whatever_the_tokens_are_the_record_is_the_one_of_parsing_all(
    texts: list[str], key: str, ascii_only: bool, bit_by_bit: int
) -> None:
    texts = [*texts, "end"]
    reads = answer(texts, key=key, ascii_only=ascii_only)
    assert read(reads, asked=len(texts), bit_by_bit=bit_by_bit) == read(reads, asked=len(texts), parse_all=True)


HOW = st.sampled_from(["flip", "cut", "insert", "drop", "join", "repeat"])
HURT = st.lists(st.tuples(HOW, st.integers(0, 500), st.integers(0, 500), st.binary(max_size=3)), min_size=1, max_size=4)


def hurt(reads: list[bytes], how: str, which: int, where: int, what: bytes) -> list[bytes]:
    """The reads with one thing done to one of them."""
    place = which % len(reads)
    before, data, after = reads[:place], reads[place], reads[place + 1 :]
    at = where % len(data)
    pieces = {
        "flip": [data[:at] + bytes([data[at] ^ (1 + where % 255)]) + data[at + 1 :]],
        "cut": [data[:at], data[at:]],
        "insert": [data[:at] + what + data[at:]],
        "drop": [data[:at] + data[at + 1 + len(what) :]],
        "join": [data + b"".join(after[:1])],
        "repeat": [data, data],
    }[how]
    return [piece for piece in (*before, *pieces, *after[how == "join" :]) if piece]


@given(key=KEYS, harm=HURT, bit_by_bit=st.integers(0, 4))
def test_whatever_is_done_to_its_reads_the_record_is_the_one_of_parsing_all(
    key: str, harm: list[tuple[str, int, int, bytes]], bit_by_bit: int
) -> None:
    reads = answer([" tok", " two", " and", " six", " end", " it"], key=key)
    for how, which, where, what in harm:
        reads = hurt(reads, how, which, where, what)
    assert read(reads, asked=6, bit_by_bit=bit_by_bit) == read(reads, asked=6, parse_all=True)


def learned(text: str = " tok", key: str = "text") -> TokenChunk:
    found = TokenChunk.of(chunk(event(text, key=key)))
    assert found is not None
    return found


def taken(pattern: TokenChunk, *reads: bytes) -> int:
    stamps = array("q")
    count = pattern.taken([(i, data) for i, data in enumerate(reads)], 0, stamps)
    assert list(stamps) == list(range(count))
    return count


@pytest.mark.parametrize("text", [" tok", "a" * 300, "é€🙂", '\n\t\\"', "\x7f", "{", "data: "])
def test_a_token_of_any_length_is_taken(text: str) -> None:
    assert taken(learned(), chunk(event(text)), chunk(event(" x"))) == 2


@pytest.mark.parametrize(
    "read",
    [
        chunk(event("")),
        chunk(event(" tok", finish="length")),
        chunk(event(" tok", key="content")),
        chunk(event("\x01")),
        chunk(event(" tok")) + b"\r\n",
        b"0" + chunk(event(" tok")),
        b"5" + chunk(event(" tok"))[1:],
        chunk(event(" tok"))[2:],
        chunk(event("XX").replace(b"XX", b"\xff\xfe")),
        chunk(event("XX").replace(b"XX", b"\xed\xa0\x80")),
        chunk(event("XX").replace(b"XX", b"\xc0\x80")),
        chunk(event("XX").replace(b"XX", b'\\"')[:-3]),
        chunk(event("XX").replace(b"XX", b'","x":"')),
        chunk(event("XX").replace(b"XX", b"\\")),
        chunk(event("XX").replace(b"XX", b"\r\n")),
        chunk(event(" tok") + event(" tok")),
        b"",
        END,
    ],
)
def test_anything_else_is_not(read: bytes) -> None:
    assert taken(learned(), chunk(event(" x")), read) == 1


@pytest.mark.parametrize("size", [b"", b"-", b"+", b" ", b"0x", b"_"])
def test_a_size_is_nothing_but_digits(size: bytes) -> None:
    whole = chunk(event(" tok"))
    assert taken(learned(), size + whole[whole.index(b"\r\n") :]) == 0


def test_what_is_not_one_event_with_a_text_teaches_nothing() -> None:
    assert TokenChunk.of(chunk(event(""))) is None
    assert TokenChunk.of(chunk(event(" tok") + event(" tok"))) is None
    assert TokenChunk.of(HEAD + chunk(event(" tok"))) is None
    assert TokenChunk.of(chunk(DONE)) is None


def test_most_reads_of_a_stream_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    decode = stream._decode_event
    monkeypatch.setattr(stream, "_decode_event", lambda data: parsed.append(data) or decode(data))
    record = read(answer([f" word{'s' * (i % 5)}" for i in range(100)]), asked=100)
    assert record.outcome is RequestOutcome.SUCCESS
    assert len(record.event_ns) == 100
    assert record.event_ns[:3] == (200, 300, 400)
    assert len(parsed) < 6
