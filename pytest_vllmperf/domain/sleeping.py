"""Sleep mode: an engine gives its GPU away and keeps its process, to be back in a second instead of a minute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pytest_vllmperf.domain.evidence import Evidence

__all__ = ["EngineControls", "SleepStep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepStep:
    """One step into sleep or out of it.

    ``duration_ns`` of waking up ends with a streamed token. Memory is in bytes: of the engine's GPUs whoever uses
    them, and of the engine's process tree on the host; None where it could not be read.
    """

    action: Literal["sleep", "wake"]
    level: int
    duration_ns: int
    device_bytes_before: int | None
    device_bytes_after: int | None
    host_bytes_before: int | None
    host_bytes_after: int | None


class EngineControls(Protocol):
    """What a live engine can be told beside requests."""

    @property
    def asleep(self) -> bool:
        """Whether it was put to sleep."""

    def sleep(self, level: int) -> SleepStep:
        """Put it to sleep."""

    def wake(self) -> SleepStep:
        """Wake it up."""

    def evidence(self) -> tuple[Evidence, ...]:
        """Look at what it does."""
