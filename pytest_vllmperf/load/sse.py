"""Server-sent events out of stamped pieces of a body, by the WHATWG rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["EventReader", "EventTooLong", "event_data"]

_BOM = b"\xef\xbb\xbf"
_LONGEST_LINE = 16 * 1024 * 1024


class EventTooLong(ValueError):
    """A line grew beyond what any server sends; the stream is garbage."""


class EventReader:
    """The data of each event as pieces of the body come in.

    Comments and the fields ``event``, ``id`` and ``retry`` are passed over, several ``data`` lines are joined,
    CR, LF and CRLF all end a line, and a byte order mark at the start is dropped
    (https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
    """

    __slots__ = ("_data", "_lines")

    def __init__(self) -> None:
        self._lines = _LineReader()
        self._data: list[bytes] = []

    @property
    def between_events(self) -> bool:
        """Whether the next byte begins an event."""
        return self._lines.fresh and not self._data

    def feed(self, piece: bytes) -> tuple[bytes, ...] | list[bytes]:
        """The events that ``piece`` completes.

        Raises:
            EventTooLong: A line is longer than 16 MiB.
        """
        # What vLLM sends: one event, one data line, one read. All else takes the general way.
        lines = self._lines
        if (
            lines.fresh
            and not self._data
            and piece.startswith(b"data: {")
            and piece.find(b"\n") == len(piece) - 2
            and piece.endswith(b"\n\n")
            and b"\r" not in piece
        ):
            return (piece[6:-2],)
        found: list[bytes] = []
        for line in lines.feed(piece):
            if line:
                _take_field(line, self._data)
            elif self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found

    def flush(self) -> bytes | None:
        """An event that lacks only its closing blank line: right when the body is known to be complete."""
        _take_field(self._lines.take_rest(), self._data)
        data, self._data = self._data, []
        return b"\n".join(data) if data else None


def event_data(pieces: Iterable[tuple[int, bytes]], *, flush: bool) -> Iterator[tuple[int, bytes]]:
    """The data of each event of a whole body, stamped with the arrival of the read that completed it.

    Args:
        pieces: The body, as ``(stamp, bytes)``.
        flush: Deliver an event that lacks only its closing blank line.

    Raises:
        EventTooLong: A line is longer than 16 MiB.
    """
    reader = EventReader()
    stamp = 0
    for stamp, piece in pieces:
        for data in reader.feed(piece):
            yield stamp, data
    last = reader.flush() if flush else None
    if last is not None:
        yield stamp, last


def _take_field(line: bytes, data: list[bytes]) -> None:
    name, colon, value = line.partition(b":")
    if name == b"data":
        data.append(value[1:] if colon and value.startswith(b" ") else value)


class _LineReader:
    """Splits pieces into lines without their ends; remembers an unfinished one."""

    __slots__ = ("_after_cr", "_at_start", "_rest", "_rest_bytes", "fresh")

    def __init__(self) -> None:
        self.fresh = False
        """Nothing is pending: the next byte begins a line. Not so at the very start, where a mark may come."""
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._at_start = True
        self._after_cr = False

    def take_rest(self) -> bytes:
        """The unfinished line, which is given up."""
        rest = b"".join(self._rest)
        self._keep(b"")
        return rest

    def feed(self, piece: bytes) -> list[bytes]:
        if not piece:
            return []  # nothing arrived, so nothing changes: not even that an LF may still follow a CR
        if self._after_cr:
            # The CR has already ended its line; an LF after it belongs to it.
            self._after_cr = False
            piece = piece[1:] if piece.startswith(b"\n") else piece
        if self._rest and not self._at_start and b"\n" not in piece and b"\r" not in piece:
            self._add(piece)  # nothing is joined until a line ends, or a long one would be copied with each piece
            return []
        text = b"".join((*self._rest, piece))
        if self._at_start:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._keep(text)
                return []
            self._at_start = False
            text = text.removeprefix(_BOM)
        lines = text.splitlines(keepends=True)
        self._keep(lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b"")
        self._after_cr = bool(lines) and not self._rest and lines[-1].endswith(b"\r")
        self.fresh = not (self._rest or self._after_cr)
        return [line.rstrip(b"\r\n") for line in lines]

    def _keep(self, rest: bytes) -> None:
        self._rest, self._rest_bytes = [], 0
        if rest:
            self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._rest.append(piece)
        self._rest_bytes += len(piece)
        if self._rest_bytes > _LONGEST_LINE:
            raise EventTooLong(f"a line of the event stream is longer than {_LONGEST_LINE} bytes")
