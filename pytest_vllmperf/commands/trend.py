"""Scan the stored runs for steps to a worse level.

One line for each metric that was judged in the latest run: whether its level has stepped within the last ten runs,
since when, by how much, and what of vLLM, its flags or the commit changed there. Runs are compared only where hardware,
driver, host, model, workload and workers are equal. Where an engine is pinned as control (`control=True`), ratios to it
are scanned, which takes the machine's own drift out. Exit code 1 when there is a step nobody has accepted
(`vllmperf accept`).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from pytest_vllmperf.commands import Answer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--engine", action="append", default=[], metavar="NAME", help="only this engine (repeatable)")
    parser.add_argument(
        "--latest", type=int, default=90, metavar="N", help="read so many of the latest runs (default: 90)"
    )
    parser.add_argument("--storage", type=Path, default=Path(".benchmarks"), metavar="DIR", help="the history's folder")
    parser.add_argument("--all", action="store_true", help="show series without a step, too")


def run(options: argparse.Namespace) -> Answer:
    """Scan."""
    from pytest_vllmperf.adapters.accepted_shifts import FILE, read_shifts
    from pytest_vllmperf.adapters.history import stored_runs
    from pytest_vllmperf.domain.series import examine
    from pytest_vllmperf.trends import series_of

    stored = stored_runs(options.directory / options.storage, at_most=options.latest)
    shifts = read_shifts(options.directory / FILE)
    findings = [examine(s) for s in series_of(stored.runs, accepted=shifts, engines=options.engine)]
    steps = [f for f in findings if f.trend.step is not None]
    shown = findings if options.all else steps
    lines = [f.sentence if f.trend.step else f"{f.series.name}: {f.trend.reason}" for f in shown]
    lines += dict.fromkeys(reason for f in findings for reason in f.series.left_out)
    lines += [f"! {warning}" for warning in stored.warnings]
    lines.append(
        f"{len(steps)} of {len(findings)} series have stepped to a worse level; `vllmperf accept` those meant to be."
        if steps
        else f"No step to a worse level in {len(findings)} series of {len(stored.runs)} runs."
    )
    data = {
        "runs": len(stored.runs),
        "series": [{"name": f.series.name, "control": f.series.control, **asdict(f.trend)} for f in findings],
    }
    return Answer(text="\n".join(lines), data=data, exit_code=1 if steps else 0)
