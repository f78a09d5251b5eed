from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.load import sse
from pytest_vllmperf.load.sse import EventTooLong, event_data


def _data(*pieces: bytes, flush: bool = False) -> list[bytes]:
    return [data for _, data in event_data(enumerate(pieces), flush=flush)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\r\n\r\n", [b"a"]),
        (b"data: a\r\r", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": comment\n\ndata: a\n\n: more\n\n", [b"a"]),
        (b"event: message\nid: 1\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"data: {}\n\ndata: {}\n\n", [b"{}", b"{}"]),
        (b"database: no\n\n", []),
        (b"\n\n\n", []),
        (b"data: unfinished\n", []),
    ],
)
def test_events_follow_the_standard(text: bytes, expected: list[bytes]) -> None:
    assert _data(text) == expected


def test_an_event_bears_the_stamp_of_the_read_that_completed_it() -> None:
    pieces = [(10, b"data: {1}\n\nda"), (20, b"ta: {2}\n"), (30, b"\ndata: {3}\n\ndata: {4}\n\n")]
    assert list(event_data(pieces, flush=False)) == [(10, b"{1}"), (30, b"{2}"), (30, b"{3}"), (30, b"{4}")]


def test_a_blank_line_split_between_cr_and_lf_ends_its_event_once_and_at_once() -> None:
    pieces = [(1, b"data: a\r\n\r"), (2, b"\ndata: b\r\n\r\n")]
    assert list(event_data(pieces, flush=False)) == [(1, b"a"), (2, b"b")]


def test_a_read_of_nothing_between_cr_and_lf_changes_nothing() -> None:
    pieces = [(1, b"data: a\r"), (2, b""), (3, b"\n\r\n")]
    assert list(event_data(pieces, flush=False)) == [(3, b"a")]


def test_an_event_without_its_blank_line_counts_only_when_the_body_is_known_to_be_whole() -> None:
    assert _data(b"data: [DONE]") == []
    assert _data(b"data: [DONE]", flush=True) == [b"[DONE]"]


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LONGEST_LINE", 100)
    with pytest.raises(EventTooLong, match="longer than 100 bytes"):
        _data(b"data: " + b"x" * 60, b"x" * 60)


_LINES = st.lists(
    st.sampled_from([b'data: {"a":1}', b"data:x", b"data", b"", b"", b": c", b"event: e", "data: é🙂".encode()]),
    max_size=30,
)


@given(lines=_LINES, end=st.sampled_from([b"\n", b"\r\n", b"\r"]), cuts=st.lists(st.integers(0, 400), max_size=25))
def test_how_the_reads_fall_never_changes_the_events(lines: list[bytes], end: bytes, cuts: list[int]) -> None:
    text = b"".join(line + end for line in lines)
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert _data(*pieces) == _data(*(bytes([byte]) for byte in text)) == _data(text)


@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans())
def test_any_bytes_are_survived(pieces: list[bytes], flush: bool) -> None:
    assert all(isinstance(data, bytes) for data in _data(*pieces, flush=flush))
