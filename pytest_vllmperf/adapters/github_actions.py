"""What GitHub Actions reads of a run: its step summary (a file) and annotations (lines of the log)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.thresholds import Outcome

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report

__all__ = ["annotation_commands", "append_step_summary"]

_SUMMARY_BYTES = 1_000_000
"""GitHub refuses a step summary above 1 MiB, all steps' parts each."""
_SHOWN = 10
"""GitHub shows ten errors and ten warnings of a step and drops the rest silently."""
_SPACE = re.compile(r"\s+")


def append_step_summary(markdown: Path, environment: Mapping[str, str]) -> Path | None:
    """Append a report to the file that ``GITHUB_STEP_SUMMARY`` names; None where there is no such variable.

    A report that is too long for GitHub is cut at a line, and says so.

    Raises:
        OSError: The report cannot be read, or the summary cannot be written.
    """
    target = environment.get("GITHUB_STEP_SUMMARY")
    if not target:
        return None
    data = markdown.read_bytes()
    if len(data) > _SUMMARY_BYTES:
        cut = data[:_SUMMARY_BYTES].rpartition(b"\n")[0]
        data = cut + f"\n\nCut at {_SUMMARY_BYTES} bytes; the whole report is {markdown.name}.\n".encode()
    path = Path(target)
    with path.open("ab") as file:
        file.write(data + b"\n")
    return path


def annotation_commands(report: Report, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Workflow commands for what is wrong, worst first; none outside of GitHub Actions.

    What failed or is INVALID is an error, INCONCLUSIVE and problems of the run are warnings. Where there are more than
    GitHub shows, the last one says how many are not.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return ()
    errors, warnings = list(_errors(report)), list(_warnings(report))
    return (*_commands("error", errors), *_commands("warning", warnings))


def _errors(report: Report) -> Iterator[tuple[str, str, str]]:
    """File, title and message."""
    for engine in report.engines:
        if engine.state == "failed":
            yield "", f"engine {engine.name} failed", engine.reason or "no reason known"
    for outcome in (Outcome.FAIL, Outcome.INVALID):
        yield from _verdicts(report, outcome)


def _warnings(report: Report) -> Iterator[tuple[str, str, str]]:
    yield from _verdicts(report, Outcome.INCONCLUSIVE)
    for problem in report.problems:
        yield "", "vllmperf", problem


def _verdicts(report: Report, outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """One for each reason: the metrics of one broken measurement share theirs."""
    found: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
    for verdict in report.verdicts:
        if verdict.outcome is outcome:
            where = verdict.limit.where.partition(":")[0] if verdict.limit is not None else ""
            key = (verdict.engine, verdict.workload, verdict.reason)
            found.setdefault(key, (where, []))[1].append(verdict.metric)
    for (engine, workload, reason), (where, metrics) in found.items():
        yield where, f"{outcome} {engine} / {workload}: {', '.join(metrics)}", reason


def _commands(level: str, entries: list[tuple[str, str, str]]) -> Iterator[str]:
    hidden = len(entries) - _SHOWN
    if hidden > 0:
        entries = [*entries[: _SHOWN - 1], ("", "vllmperf", f"… and {hidden + 1} more {level}s in the report")]
    for file, title, message in entries:
        place = f"file={_property(file)}," if file else ""
        yield f"::{level} {place}title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    """Text that stays on one line and cannot start a command of its own."""
    return _SPACE.sub(" ", text).strip().replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
