"""When many sockets may be served by one wake-up, as network cards moderate their interrupts.

Waking up costs a client more than reading does. Where reads bear the kernel's stamps nothing depends on when a socket
is read: after serving one it may look away for a moment, and then find several that are ready.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Moderation"]

_MOST_NS = 2_000_000
_LEAST_NS = 1_000_000
"""Event loops round their timers to milliseconds."""
_WORTH = 3.0
"""Sockets served before and after a pause that pay for it: it saves a wake-up for each but the first, and is one."""
_GAP_SHARE = 4
_ANSWER_SHARE = 200
_KEPT_GAPS = 32
_FRESH_GAPS = 8
_LOW = 10
"""Of a hundred gaps so many are shorter than what counts: a stream opens and ends with events that belong together."""
_MEMORY = 8
"""Pauses, or answers, that an average looks back on."""


class Moderation:
    """Decides how long the sockets may be left alone after a wake-up.

    Not at all unless at least two more may be expected meanwhile: a single stream is attended to at once. Never for
    more than 2 ms, than a quarter of the usual gap between two events of a stream (else they would fall into one read,
    and share a stamp), or than a two-hundredth of an answer (a closed loop sends its next request when it sees the end
    of an answer: that is late by half a pause on average).
    """

    __slots__ = ("_answer_ns", "_expected", "_found", "_fresh", "_gaps", "_limit_ns", "_opened_ns", "gap_ns")

    def __init__(self) -> None:
        self.gap_ns = 0
        """Between two events of a stream: one in ten gaps is shorter. 0 before that is known."""
        self._gaps: deque[int] = deque(maxlen=_KEPT_GAPS)
        self._fresh = 0
        self._answer_ns: float | None = None
        self._limit_ns = 0
        self._expected = 0.0
        self._opened_ns: int | None = None
        self._found = 0

    def spaced(self, gap_ns: int) -> None:
        """Take how long after the one before it in its answer an event came; one of a wake-up is enough."""
        self._gaps.append(gap_ns)
        self._fresh += 1
        if self._fresh == _FRESH_GAPS or gap_ns < self.gap_ns:
            self._fresh = 0
            self._set_limit()

    def pause_ns(self) -> int:
        """How long, as things stand; 0 for not at all."""
        return self._limit_ns if self._limit_ns >= _LEAST_NS and self._expected >= _WORTH else 0

    def woke_up(self, now_ns: int, served: int) -> None:
        """Take a wake-up without a pause, for so many sockets: it tells as well what a pause would have found."""
        if self._opened_ns is not None:
            if now_ns - self._opened_ns <= max(self._limit_ns, _LEAST_NS):
                self._found += served
                return
            self._learn(self._found)
        self._opened_ns, self._found = now_ns, served

    def paused(self, served: int, quiet_ns: int) -> int:
        """Take the end of a pause; how long the sockets may be left alone once more.

        Args:
            served: Sockets that were ready, with those that were before it.
            quiet_ns: How long ago the last of what they brought came.
        """
        self._learn(served)
        self._opened_ns = None
        return self.pause_ns() if served >= _WORTH and quiet_ns < self._limit_ns // _GAP_SHARE else 0

    def answered(self, duration_ns: int) -> None:
        """Take how long an answer took."""
        usual_ns = self._answer_ns
        self._answer_ns = duration_ns if usual_ns is None else usual_ns + (duration_ns - usual_ns) / _MEMORY
        self._set_limit()

    def _learn(self, found: int) -> None:
        self._expected += (found - self._expected) / _MEMORY

    def _set_limit(self) -> None:
        if len(self._gaps) < _KEPT_GAPS:
            return
        self.gap_ns = sorted(self._gaps)[_KEPT_GAPS * _LOW // 100]
        self._limit_ns = min(_MOST_NS, self.gap_ns // _GAP_SHARE)
        if self._answer_ns is not None:
            self._limit_ns = min(self._limit_ns, int(self._answer_ns) // _ANSWER_SHARE)
