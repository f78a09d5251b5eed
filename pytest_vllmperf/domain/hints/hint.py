"""What a hint is: a pattern found in a log, and the advice that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Hint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """Advice for one known failure.

    Args:
        row: Its number in the catalogue; several hints may share a row (one for each form of a message).
        id: A readable name, shown behind the advice.
        pattern: Searched in the cause found in a log, or in the body of an HTTP error.
        advice: What to do; named groups of ``pattern`` are filled in (``{{`` is a brace).
        warns: True where the line is a warning of an engine that runs on.
    """

    row: str
    id: str
    pattern: str
    advice: str
    warns: bool = False
