"""HTTP/1.1 answers: whether one is complete while it arrives, and its body with stamps afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import httptools

__all__ = ["AnswerFraming", "HttpAnswer", "read_http"]


class AnswerFraming:
    """Tells where one answer ends, and whether its connection may serve another request."""

    __slots__ = ("_broken", "_keep_alive", "_length_known", "_parser", "chunked", "complete", "status", "surplus")

    def __init__(self) -> None:
        self.chunked = False
        self.complete = False
        self.status: int | None = None
        """HTTP status, None before the headers are complete."""
        self.surplus = False
        """Bytes arrived after the end of the answer."""
        self._keep_alive = False
        self._length_known = False
        self._broken = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> str | None:
        """Take the next bytes; the reason in words when they are not HTTP."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broken = True
            if not self.complete:
                return str(error) or type(error).__name__
        return None

    def ended_by_close(self) -> bool:
        """True when the server closing the connection was a proper end of the answer."""
        return self.status is not None and not self.complete and not self.chunked and not self._length_known

    @property
    def reusable(self) -> bool:
        """True when the connection may carry another request."""
        return self.complete and not self.surplus and not self._broken and self._keep_alive

    def on_message_begin(self) -> None:
        """Parser callback: a second message after a complete one is surplus."""
        self.surplus = self.complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser callback."""
        key = name.lower()
        if key == b"transfer-encoding":
            self.chunked = b"chunked" in value.lower()
        elif key == b"content-length":
            self._length_known = True

    def on_headers_complete(self) -> None:
        """Parser callback: the only moment at which the parser knows both of these."""
        if not self.complete:
            self.status = int(self._parser.get_status_code())
            self._keep_alive = bool(self._parser.should_keep_alive())

    def on_message_complete(self) -> None:
        """Parser callback; an interim answer (1xx) is not the end."""
        self.complete = self.complete or (self.status or 0) >= 200


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """An answer taken apart. ``body`` holds its pieces, each with the arrival of the read that brought it."""

    status: int | None
    content_type: str
    body: tuple[tuple[int, bytes], ...]
    complete: bool
    error: str | None


@dataclass(slots=True)
class _BodyCollector:
    """Parser callbacks that keep the body and the content type of the first final answer."""

    stamp_ns: int = 0
    body: list[tuple[int, bytes]] = field(default_factory=list)
    content_type: str = ""
    complete: bool = False
    parser: httptools.HttpResponseParser | None = None
    status: int | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete and name.lower() == b"content-type":
            self.content_type = value.decode("latin-1").lower()

    def on_headers_complete(self) -> None:
        if not self.complete and self.parser is not None:
            self.status = int(self.parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self.body.append((self.stamp_ns, data))

    def on_message_complete(self) -> None:
        self.complete = self.complete or (self.status or 0) >= 200


def read_http(reads: Sequence[tuple[int, bytes]]) -> HttpAnswer:
    """Take an answer apart. Never raises: what is not HTTP ends up in ``error``."""
    collector = _BodyCollector()
    parser = collector.parser = httptools.HttpResponseParser(collector)
    error = None
    try:
        for collector.stamp_ns, data in reads:
            parser.feed_data(data)
            if collector.complete:
                break
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
        if not collector.complete:
            error = str(problem) or type(problem).__name__
    collector.parser = None
    return HttpAnswer(
        status=collector.status,
        content_type=collector.content_type,
        body=tuple(collector.body),
        complete=collector.complete,
        error=error,
    )
