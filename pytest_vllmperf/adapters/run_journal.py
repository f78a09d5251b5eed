"""Results on disk as each test ends: one JSON document a line, so that a killed run loses the test in flight only.

The first line tells where and how the run measures, the last how it ended; each line between is what one test sent.
``vllmperf merge`` reads such files back, of this run or of many.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_vllmperf.errors import HistoryError

__all__ = ["JOURNAL", "Journal", "JournalWriter", "left_by_a_killed_run", "read_journal"]

JOURNAL = "results.jsonl"
"""The file's name in a report directory."""
SCHEMA = 1
_START, _TEST, _END = "start", "test", "end"


class JournalWriter:
    """Writes one run's journal. What an earlier, killed run left in its place is set aside, never overwritten.

    Args:
        path: The file; its folder is made.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if kept := left_by_a_killed_run(path):
            path.rename(kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace")

    def start(self, facts: Mapping[str, Any]) -> None:
        """Note where and how the run measures."""
        self._write({"what": _START, "schema": SCHEMA, **facts})

    def test(self, facts: Mapping[str, Any]) -> None:
        """Note what one test sent."""
        self._write({"what": _TEST, "at": time.time(), **facts})

    def end(self, facts: Mapping[str, Any]) -> None:
        """Note how the run ended. Nothing may follow."""
        self._write({"what": _END, "at": time.time(), **facts})
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        """One whole line, handed to the disk: neither a killed process nor a machine that stops may lose it."""
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """One run as its journal tells it. ``end`` is None for a run that was killed; ``warnings`` name broken lines.

    Every line but the first has ``at``, the time of writing in seconds since the epoch.
    """

    path: Path
    start: Mapping[str, Any]
    tests: tuple[Mapping[str, Any], ...]
    end: Mapping[str, Any] | None
    warnings: tuple[str, ...]


def read_journal(path: Path) -> Journal:
    """Read a journal, or the one in a report directory. A line that is broken is left out with a warning.

    Raises:
        HistoryError: There is none, or its first line is not one of a run.
        OSError: It cannot be read.
    """
    file = path / JOURNAL if path.is_dir() else path
    if not file.is_file():
        raise HistoryError(
            f"{path}: there are no results of a run here; name a report directory with {JOURNAL} in it, or that file"
        )
    lines, warnings = [], []
    with file.open("rb") as content:
        for number, raw in enumerate(content, start=1):
            try:
                line = json.loads(raw)
                lines.append((line["what"], line))
            except (ValueError, TypeError, KeyError):  # noqa: PERF203 - one broken line must not hide the others
                warnings.append(f"{file}, line {number} is broken or cut off, and left out")
    if not lines or lines[0][0] != _START or lines[0][1].get("schema") != SCHEMA:
        raise HistoryError(f"{file}: line 1 does not begin a run's results (schema {SCHEMA}); remove or restore it")
    return Journal(
        path=file,
        start=lines[0][1],
        tests=tuple(line for what, line in lines if what == _TEST),
        end=next((line for what, line in lines if what == _END), None),
        warnings=tuple(warnings),
    )


def left_by_a_killed_run(path: Path) -> Path | None:
    """The name that unfinished results in ``path`` will be kept under; None where there are none worth it."""
    try:
        left = read_journal(path)
    except (HistoryError, OSError):
        return None
    if left.end is not None or not left.tests:
        return None
    number = 1
    while (kept := path.with_name(f"results-killed-{number}.jsonl")).exists():
        number += 1
    return kept
