"""HTTP/1.1 answers: whether one is complete while it arrives, and its body with stamps afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import httptools

__all__ = ["AnswerFraming", "HttpReader"]

_OPENING = 4096


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


class HttpReader:
    """Takes an answer apart as its reads come in; the body goes to ``on_body`` piece by piece.

    Never raises on what is not HTTP: that ends up in ``error``. The opening of the body is kept for messages.
    """

    __slots__ = (
        *("_chunk_over", "_on_body", "_parser", "between_chunks", "complete", "content_type", "error", "opening"),
        *("stamp_ns", "status"),
    )

    def __init__(self, on_body: Callable[[bytes], None]) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.complete = False
        self.error: str | None = None
        self.opening = b""
        self.stamp_ns = 0
        """Arrival of the read that is being taken apart."""
        self.between_chunks = False
        """The last read ended with a chunk; the next begins with the size of one."""
        self._chunk_over = False
        self._on_body = on_body
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, reads: Sequence[tuple[int, bytes]]) -> None:
        """Take the next reads; whatever follows a complete or broken answer is ignored."""
        if self._parser is None or not reads:
            return
        feed = self._parser.feed_data
        data = b""
        try:
            for self.stamp_ns, data in reads:
                feed(data)
                if self.complete:
                    break
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            if not self.complete:
                self.error = str(problem) or type(problem).__name__
            self._parser = None
        if self.complete:
            self._parser = None
        # The parser says nothing of a size that has begun; of one that is whole, which ends in a line end too, it does.
        self.between_chunks = self._parser is not None and self._chunk_over and data.endswith(b"\r\n")

    def on_chunk_header(self) -> None:
        """Parser callback: the size of a chunk is known."""
        self._chunk_over = False

    def on_chunk_complete(self) -> None:
        """Parser callback: its data and the line end after it are there."""
        self._chunk_over = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser callback."""
        if not self.complete and name.lower() == b"content-type":
            self.content_type = value.decode("latin-1").lower()

    def on_headers_complete(self) -> None:
        """Parser callback."""
        if not self.complete and self._parser is not None:
            self.status = int(self._parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        """Parser callback."""
        if not self.complete:
            if len(self.opening) < _OPENING:
                self.opening += data[:_OPENING]
            self._on_body(data)

    def on_message_complete(self) -> None:
        """Parser callback; an interim answer (1xx) is not the end."""
        self.complete = self.complete or (self.status or 0) >= 200
