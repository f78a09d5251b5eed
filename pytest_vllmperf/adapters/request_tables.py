"""The raw requests of a load run as CSV, one row each, for whoever wants to look closer."""

from __future__ import annotations

import csv
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vllmperf.domain.records import LoadRun, RequestRecord

__all__ = ["COLUMNS", "requests_path", "write_requests"]

COLUMNS = (
    "index",
    "outcome",
    "status",
    "intended_s",
    "dispatched_s",
    "written_s",
    "first_byte_s",
    "first_token_s",
    "last_token_s",
    "ended_s",
    "events",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "finish_reason",
    "detail",
)
"""Times count in seconds from the first dispatch; what was not observed is empty."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def requests_path(directory: Path, engine: str, workload: str) -> Path:
    """Where the requests of one measurement go: ``requests/ENGINE-WORKLOAD.csv``."""
    return directory / "requests" / (_UNSAFE.sub("_", f"{engine}-{workload}") + ".csv")


def write_requests(run: LoadRun, path: Path) -> None:
    """Write every request of ``run``, failed ones too, in order of the plan. The file appears whole or not at all.

    Raises:
        OSError: ``path`` cannot be written.
    """
    origin = min((r.dispatched_ns for r in run.records), default=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            rows.writerows(_row(record, origin) for record in run.records)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _row(record: RequestRecord, origin: int) -> tuple[object, ...]:
    def seconds(at_ns: int | None) -> str:
        return "" if at_ns is None else f"{(at_ns - origin) * 1e-9:.9f}"

    first, last = (record.event_ns[0], record.event_ns[-1]) if record.event_ns else (None, None)
    return (
        record.index,
        str(record.outcome),
        record.status,
        seconds(record.intended_ns),
        seconds(record.dispatched_ns),
        seconds(record.written_ns),
        seconds(record.first_byte_ns),
        seconds(first),
        seconds(last),
        seconds(record.ended_ns),
        len(record.event_ns),
        record.input_tokens,
        record.output_tokens,
        record.cached_tokens,
        record.finish_reason,
        _plain(record.detail),
    )


def _plain(text: str | None) -> str | None:
    """``text`` on one line, and never taken for a formula by a spreadsheet."""
    if not text:
        return text
    line = " ".join(text.split())
    return f"'{line}" if line[:1] in "=+-@" else line
