"""What GitHub Actions reads of a run: its step summary (a file) and annotations (lines of the log)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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


def annotation_commands(
    report: Report, environment: Mapping[str, str], *, thresholds: Path | None = None
) -> tuple[str, ...]:
    """Workflow commands for what is wrong, worst first; none outside of GitHub Actions.

    What failed or is INVALID is an error, INCONCLUSIVE and problems of the run are warnings. Where there are more than
    GitHub shows, the last one says how many are not. ``thresholds`` is the file the limits were read from: a verdict
    then stands in it, at the line of its limit.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return ()
    place = _Places(thresholds, environment.get("GITHUB_WORKSPACE"))
    return (*_commands("error", list(_errors(report)), place), *_commands("warning", list(_warnings(report)), place))


class _Places:
    """Where limits stand, as properties of a command; empty for what stands in no file."""

    def __init__(self, path: Path | None, workspace: str | None) -> None:
        self._name = ""
        self._lines: list[str] = []
        if path is not None and path.is_file():
            root = Path(workspace).resolve() if workspace else Path.cwd()
            there = path.resolve()
            self._name = there.relative_to(root).as_posix() if there.is_relative_to(root) else path.name
            self._lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()

    def of(self, where: str) -> str:
        """``file=…,line=…,`` of a place such as ``thresholds.toml: limit[2].ttft_mean``; a change's has its tables."""
        file, _, place = where.partition(": ")
        if not place:
            return ""
        line = limit_line(self._lines, place)
        return f"file={_property(self._name or file)}," + (f"line={line}," if line else "")


_LIMIT_HEAD = re.compile(r"\s*\[\[\s*[\"']?limit[\"']?\s*\]\]")
_HEAD = re.compile(r"\s*\[+([^\]]*)\]")
_PLACE = re.compile(r"limit\[(\d+)\](?:\.([\w-]+))?")


def limit_line(lines: Sequence[str], place: str) -> int | None:
    """The line, from 1, of a place such as ``limit[2].ttft_mean``: where its key is, else where its table begins.

    None where the file does not have it.
    """
    found = _PLACE.match(place)
    heads = [i for i, line in enumerate(lines, 1) if _LIMIT_HEAD.match(line)]
    if found is None or int(found[1]) > len(heads):
        return None
    start = heads[int(found[1]) - 1]
    end = heads[int(found[1])] - 1 if int(found[1]) < len(heads) else len(lines)
    name = re.escape(found[2] or "")
    key = re.compile(rf"""\s*["']?{name}["']?\s*[.=]|\s*\[\s*limit\s*\.\s*["']?{name}["']?\s*\]""")
    for number, line in enumerate(lines[start:end], start + 1):
        if found[2] and key.match(line):
            return number
        head = _HEAD.match(line)
        if head is not None and not head[1].strip().startswith("limit"):
            break
    return start


def _errors(report: Report) -> Iterator[tuple[str, str, str]]:
    """Place of the limit, title and message."""
    for engine in report.engines:
        if engine.state == "failed":
            yield "", f"engine {engine.name} failed", engine.reason or "no reason known"
    for outcome in (Outcome.FAIL, Outcome.INVALID):
        yield from _verdicts(report, outcome)


def _warnings(report: Report) -> Iterator[tuple[str, str, str]]:
    yield from _verdicts(report, Outcome.INCONCLUSIVE)
    for problem in report.problems:
        where = problem if _PLACE.match(problem.partition(": ")[2]) else ""
        yield where, "vllmperf", problem


def _verdicts(report: Report, outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """One for each reason: the metrics of one broken measurement share theirs."""
    found: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
    for verdict in report.verdicts:
        if verdict.outcome is outcome:
            where = verdict.limit.where if verdict.limit is not None else ""
            key = (verdict.engine, verdict.workload, verdict.reason)
            found.setdefault(key, (where, []))[1].append(verdict.metric)
    for (engine, workload, reason), (where, metrics) in found.items():
        yield where, f"{outcome} {engine} / {workload}: {', '.join(metrics)}", reason


def _commands(level: str, entries: list[tuple[str, str, str]], places: _Places) -> Iterator[str]:
    hidden = len(entries) - _SHOWN
    if hidden > 0:
        entries = [*entries[: _SHOWN - 1], ("", "vllmperf", f"… and {hidden + 1} more {level}s in the report")]
    for where, title, message in entries:
        yield f"::{level} {places.of(where)}title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    """Text that stays on one line and cannot start a command of its own."""
    return _SPACE.sub(" ", text).strip().replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
