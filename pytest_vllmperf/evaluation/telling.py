"""Progress of an evaluation in lines that are few enough for a log."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["in_lines"]

_EVERY_S = 5.0


def in_lines(tell: Callable[[str], None], what: str, *, every_s: float = _EVERY_S) -> Callable[[int, int], None]:
    """A function of (answers so far, questions) that tells a line now and then, and not at the end."""
    last = began = time.monotonic()

    def told(done: int, count: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every_s or done >= count:
            return
        last = now
        left_s = (now - began) / done * (count - done)
        tell(f"{what}: {done}/{count} answered, about {left_s:.0f} s left")

    return told
