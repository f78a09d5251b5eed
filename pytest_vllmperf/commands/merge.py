"""Join the results of several runs into one report and one history entry.

Each RUN is a report directory (reports/latest) or a results.jsonl: the shards of a CI job, runs on several hosts, or
one run that was killed. They must have been judged by the same limits, and are judged together: a limit that applies
and that none of them looked at is a problem (exit code 12) unless --partial says that more is to come.
The exit code is the one a single run would have had.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.commands import Answer

if TYPE_CHECKING:
    from pytest_vllmperf.domain.environment import Environment
    from pytest_vllmperf.merging import Merged

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a report directory, or a results.jsonl")
    parser.add_argument(
        "--report-dir",
        type=Path,
        default=Path("reports/merged"),
        metavar="DIR",
        help="where the report goes (default: reports/merged)",
    )
    parser.add_argument(
        "--storage",
        type=Path,
        default=Path(".benchmarks"),
        metavar="DIR",
        help="the history that takes the entry (default: .benchmarks)",
    )
    parser.add_argument("--no-history", action="store_true", help="write the report only")
    parser.add_argument("--partial", action="store_true", help="do not ask for limits that no run looked at")


def run(options: argparse.Namespace) -> Answer:
    """Read, judge, write."""
    from pytest_vllmperf.adapters import history, writers
    from pytest_vllmperf.adapters.run_journal import read_journal
    from pytest_vllmperf.domain.report import headline
    from pytest_vllmperf.merging import merge
    from pytest_vllmperf.reporting import write_reports

    root: Path = options.directory
    journals = [read_journal(root / path) for path in dict.fromkeys(path.resolve() for path in _under(options))]
    merged = merge(journals, partial=options.partial)
    report, directory = merged.report, root / options.report_dir
    stored = [] if options.no_history else _store(merged, root / options.storage)
    earlier = history.stored_runs(root / options.storage, at_most=20)
    write_reports(report, directory, history=earlier.runs, notes=earlier.warnings)
    lines = [
        *writers.terminal_table(report),
        *(f"! {problem}" for problem in report.problems),
        f"{headline(report.verdicts, report.engines, report.problems)}. Exit code {report.exit_code}.",
        *(f"History: {path}" for path in stored),
        f"Report: {directory / 'index.html'}",
    ]
    data = {"exit_code": report.exit_code, "problems": report.problems, "history": [str(path) for path in stored]}
    return Answer(
        text="\n".join(lines), data={**data, "report": str(directory / "report.json")}, exit_code=report.exit_code
    )


def _under(options: argparse.Namespace) -> list[Path]:
    root: Path = options.directory
    return [root / path for path in options.runs]


def _store(merged: Merged, storage: Path) -> list[Path]:
    """One history entry for each kind of hardware."""
    from pytest_vllmperf.adapters import benchmark_storage, history

    return [
        benchmark_storage.save_run(
            storage,
            history.run_as_file(
                part.summaries,
                extra=part.extra,
                machine_info=_machine(part.environment),
                at=merged.report.started_at,
            ),
            hardware=part.environment.hardware,
            name="merged",
        )
        for part in merged.parts
        if part.summaries
    ]


def _machine(environment: Environment) -> dict[str, object]:
    """What pytest-benchmark notes of a machine, as far as the run told."""
    return {
        "node": environment.host,
        "python_version": environment.python,
        "cpu": {"brand_raw": environment.cpu, "count": environment.cores},
    }
