"""The subcommands of ``vllmperf``: one module each, found by its file name (``_`` in it reads ``-``).

A module has a docstring, whose first line is its help and whose rest is shown by ``--help``, and the two functions
of :class:`Command`. It must import anything heavy inside functions: ``vllmperf --help`` imports all of them. To refuse,
raise a :class:`~pytest_vllmperf.errors.VllmPerfError` (or let an ``OSError`` through): the frame prints it as
``vllmperf: <message>`` on stderr and ends with exit code 2. Modules whose name starts with ``_`` are no commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import argparse

__all__ = ["Answer", "Command", "columns", "tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a subcommand found.

    ``text`` is for people and ``data`` the same facts for ``--json`` (dataclasses are fine: they become plain JSON);
    ``exit_code`` is 0 unless the answer itself is bad news.
    """

    text: str
    data: object
    exit_code: int = 0


class Command(Protocol):
    """The shape of a subcommand's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments; ``--json`` and ``-C/--directory`` are the frame's."""

    def run(self, options: argparse.Namespace) -> Answer:
        """Do it. ``options.directory`` is the project's root (a Path), ``options.json`` says who reads."""


def tell(line: str) -> None:
    """Say at once what a long command is doing: on stderr, so that ``--json`` and pipes stay clean."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command speaks by printing


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A table in plain text: one header line, two spaces between columns, those named ``right`` right-aligned."""
    table = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = (
        "  ".join(c.rjust(w) if name in right else c.ljust(w) for c, w, name in zip(row, widths, head, strict=True))
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)
