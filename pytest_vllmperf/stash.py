"""What the hooks and fixtures of one pytest process keep in ``config.stash`` and ``item.stash``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.run_journal import JournalWriter
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session

__all__ = ["EVIDENCE", "SESSION", "STATE", "RunState"]


@dataclass(slots=True, kw_only=True)
class RunState:
    """What the hooks themselves must remember of a run.

    Args:
        uses_engines: Some selected test uses an engine.
        checked: Everything the user wrote was found in order, and the run may measure.
        partial: Why limits of unselected tests are not expected to be judged; None for a whole run.
        ordinary_failures: Tests and collectors that failed for another reason than a limit.
        internal_error: pytest itself broke, here or in a worker.
        comparison: What ``--benchmark-compare`` was given, kept until the hardware is known.
        report: The finished report.
        written: Its files.
        push_failure: Why its metrics could not be pushed, None where they were or nobody asked.
        limits_diff: What calibrating changed in the limits file; empty where it changed nothing.
        unsaved: What history could not be given, a sentence each, filled at the very end.
        journal: Takes what each test sent to disk at once; None where nothing is measured.
    """

    uses_engines: bool = False
    checked: bool = False
    partial: str | None = None
    ordinary_failures: int = 0
    internal_error: bool = False
    comparison: str | bool | None = None
    report: Report | None = None
    journal: JournalWriter | None = None
    unsaved: list[str] = field(default_factory=list)
    written: tuple[Path, ...] = ()
    push_failure: str | None = None
    limits_diff: str = ""


# The keys' types are for the type checker: importing them would cost every start of pytest 10 ms and more.
SESSION: pytest.StashKey[Session] = pytest.StashKey()
EVIDENCE: pytest.StashKey[Evidence] = pytest.StashKey()
STATE: pytest.StashKey[RunState] = pytest.StashKey()
