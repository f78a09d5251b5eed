"""A server's log as lines: colours off, progress bars at their last state, process and level told apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Line", "log_lines", "plain_lines"]

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_ROLE = re.compile(r"\((?P<role>[A-Za-z][\w-]*) pid=(?P<pid>\d+)\) ?")
_LEVEL = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+(\d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?)?")
"""How vLLM, uvicorn and most others begin a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a log.

    ``role`` is the process's name as vLLM prints it (``APIServer``, ``EngineCore``, ``Worker``, …) and
    ``stream`` that with its pid; both, and ``level``, are empty where the line does not say.
    """

    stream: str
    role: str
    level: str
    text: str


def plain_lines(text: str) -> Iterator[str]:
    """Lines without colours; a line overwritten by carriage returns shows its last state."""
    for line in _ANSI.sub("", text).split("\n"):
        yield line.rstrip("\r").rsplit("\r", 1)[-1]


def log_lines(text: str) -> Iterator[Line]:
    """Each line taken apart into the process that wrote it, its level and what it says."""
    for line in plain_lines(text):
        rest = line
        role = pid = level = ""
        if match := _ROLE.match(rest):
            role, pid, rest = match["role"], match["pid"], rest[match.end() :]
        if match := _LEVEL.match(rest):
            level, rest = match["level"], rest[match.end() :]
        yield Line(stream=f"{role}{pid}", role=role, level=level, text=rest.rstrip())
