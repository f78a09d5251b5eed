"""Build the report of an earlier run again, with today's history beside it.

SOURCE is a report.json, a folder that holds one (default: reports/latest), or a run of the history: its number
(0012), latest, or latest~1 for the one before. A report.json has everything; history keeps values, samples and
outcomes, but no limits, timelines, flags or logs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_vllmperf.commands import Answer

__all__ = ["add_arguments", "run"]

_RUNS_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("source", nargs="?", default="reports/latest", metavar="SOURCE", help="which run (see above)")
    parser.add_argument(
        "--report-dir", type=Path, default=Path("reports/rebuilt"), metavar="DIR", help="default: reports/rebuilt"
    )
    parser.add_argument("--formats", default="html,md,json", help="html, md, json, prom (default: html,md,json)")
    parser.add_argument(
        "--storage", type=Path, default=Path(".benchmarks"), metavar="DIR", help="the history (default: .benchmarks)"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of report.json, and nothing else")


def run(options: argparse.Namespace) -> Answer:
    """Find, write, say where."""
    import json

    from pytest_vllmperf.adapters import writers
    from pytest_vllmperf.adapters.history import stored_runs
    from pytest_vllmperf.domain.report import headline
    from pytest_vllmperf.recall import find_report
    from pytest_vllmperf.reporting import parse_formats, write_reports

    if options.schema:
        schema = writers.report_schema()
        return Answer(text=json.dumps(schema, indent=2, ensure_ascii=False), data=schema)
    root: Path = options.directory
    formats = parse_formats(options.formats)
    report = find_report(options.source, directory=root, storage=root / options.storage)
    history = stored_runs(root / options.storage, at_most=_RUNS_SHOWN)
    earlier = [past for past in history.runs if past.datetime < report.started_at]
    written = write_reports(report, root / options.report_dir, formats=formats, history=earlier, notes=history.warnings)
    sentence = headline(report.verdicts, report.engines, report.problems)
    return Answer(
        text="\n".join([f"{report.started_at}: {sentence}.", *(f"Report: {path}" for path in written)]),
        data={"started_at": report.started_at, "headline": sentence, "exit_code": report.exit_code, "written": written},
    )
