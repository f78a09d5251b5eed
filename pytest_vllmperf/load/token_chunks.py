"""Chunks that bring one token and differ from the one before in its text alone: almost all of what servers stream.

Where all else is equal, byte for byte, they need not be parsed: they say what the parsed one said.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from functools import cache

__all__ = ["TokenChunk"]

_TEXT = (
    rb'(?:[ !#-\[\]-\x7f]|\\["\\/bfnrt]'
    rb"|[\xc2-\xdf][\x80-\xbf]"
    rb"|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+"
)
"""The inside of a JSON string (RFC 8259, section 7) that is not empty, in well-formed UTF-8; no ``\\u`` escapes."""
_KEYS = rb"text|content|reasoning|reasoning_content"
_CHUNK = re.compile(rb'[0-9a-fA-F]+(\r\ndata: \{[^\r\n]*"(?:' + _KEYS + rb')":")' + _TEXT + rb'("[^\r\n]*\}\n\n\r\n)')
_NO_SIZE = b"-"
_is_text = re.compile(_TEXT).fullmatch


@cache
def _size_line(length: int) -> bytes:
    """The size that opens a chunk which is ``length`` bytes long with it and both line ends."""
    for digits in range(1, 9):
        size = b"%x" % max(0, length - digits - 4)
        if len(size) == digits:
            return size
    return _NO_SIZE  # 0x10 bytes make a chunk of 22, 0xf make one of 20: 21 is none


class TokenChunk:
    """The bytes around the text of a token.

    The argument for taking the next chunk as read: it has the same bytes before and after, and between them the inside
    of a JSON string that is not empty. So it is valid JSON of the same structure, and all that is ever asked of a text
    is whether it is empty (``stream.py``).
    """

    __slots__ = ("_after", "_before", "_openings")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._openings: dict[int, bytes] = {}
        """What is before the text, with the size of the chunk, by the length of the read."""

    @classmethod
    def of(cls, read: bytes) -> TokenChunk | None:
        """Learn it from a read that was one whole chunk with one event, which was parsed and is nothing but a token.

        None where the text cannot be told from the rest.
        """
        found = _CHUNK.fullmatch(read)
        return None if found is None else cls(found[1], found[2])

    def taken(self, reads: Sequence[tuple[int, bytes]], start: int, event_ns: array[int]) -> int:
        """Add the stamps of such chunks to ``event_ns``, from ``start`` to the first read that is none.

        Returns:
            The place of that read, or the count of reads.
        """
        after, keep, openings = self._after, event_ns.append, self._openings
        less = len(after)
        for place in range(start, len(reads)):
            stamp, read = reads[place]
            length = len(read)
            opening = openings.get(length)
            if opening is None:
                opening = openings[length] = _size_line(length) + self._before
            if not (read.startswith(opening) and read.endswith(after) and _is_text(read, len(opening), length - less)):
                return place
            keep(stamp)
        return len(reads)
