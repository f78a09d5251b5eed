"""One request in flight, as the hot path sees it: stamps and raw bytes, nothing understood yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.records import RequestOutcome

if TYPE_CHECKING:
    from pytest_vllmperf.load.stream import AnswerReading

__all__ = ["Exchange"]


@dataclass(slots=True, kw_only=True, eq=False)
class Exchange:
    """One request and what came back. Mutable, because it is filled while the clock runs.

    Args:
        index: Place in the plan, from 0.
        payload: The whole HTTP request.
        follows: Index of the exchange that must be over before this one is sent, if any.
        intended_ns, dispatched_ns, written_ns, ended_ns: As in ``RequestRecord``.
        due_ns: When the client could have sent it: when it was intended, or later, when the cap on requests in
            flight had room again. What passes after that is the client's own delay.
        reads: Every read from the socket with the moment it arrived, as far as ``reading`` has not taken them.
        unread: Of its first reads those that were kept waiting: their stamp, and for how long before it nobody read.
        taken: How many reads ``reading`` has taken.
        weighed: How many of all its reads have been weighed so far: their bytes counted.
        weight: Bytes of those of them that are still in ``reads``.
        reading: What has been understood so far; None where nothing was looked at yet.
        suspect: Whether it looks as if it had failed.
        outcome: Set where the connection already decided it (timeout, connection or HTTP broken).
        detail: Why, in words.
    """

    index: int
    payload: bytes
    follows: int | None = None
    intended_ns: int = 0
    due_ns: int = 0
    dispatched_ns: int = 0
    written_ns: int | None = None
    ended_ns: int = 0
    reads: list[tuple[int, bytes]] = field(default_factory=list)
    unread: list[tuple[int, int]] = field(default_factory=list)
    taken: int = 0
    weighed: int = 0
    weight: int = 0
    reading: AnswerReading | None = None
    suspect: bool = False
    outcome: RequestOutcome | None = None
    detail: str | None = None
