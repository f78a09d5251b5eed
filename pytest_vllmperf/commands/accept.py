"""Accept a shift of level: runs before it are no longer compared with.

`vllmperf accept max-perf/burst/output_throughput --since 2026-11-20 --reason "larger default batch in vLLM 0.32"` notes
in accepted-shifts.toml, to be kept under version control, that the new level is meant to be. The scan for steps and
the prediction from stored runs start anew there. `*` stands for any engine, workload or metric.
"""

from __future__ import annotations

import argparse
import datetime as dt

from pytest_vllmperf.commands import Answer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("series", metavar="ENGINE/WORKLOAD/METRIC", help="as `vllmperf trend` prints it; * for any")
    parser.add_argument("--since", metavar="DATE", help="first day at the new level, as 2026-11-20 (default: today)")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why it is meant to be")


def run(options: argparse.Namespace) -> Answer:
    """Note it."""
    from pytest_vllmperf.adapters.accepted_shifts import FILE, accept
    from pytest_vllmperf.domain.metrics import judgeable_metric
    from pytest_vllmperf.domain.series import Shift
    from pytest_vllmperf.errors import HistoryError

    parts = options.series.split("/")
    if len(parts) != 3 or not all(parts):
        raise HistoryError(f"{options.series}: must be ENGINE/WORKLOAD/METRIC, as `vllmperf trend` prints it")
    if parts[2] != "*":
        judgeable_metric(parts[2])
    since = options.since or dt.datetime.now(dt.timezone.utc).date().isoformat()
    try:
        dt.date.fromisoformat(since)
    except ValueError:
        raise HistoryError(f"--since {since}: must be a date such as 2026-11-20") from None
    shift = Shift(engine=parts[0], workload=parts[1], metric=parts[2], since=since, reason=options.reason)
    accept(options.directory / FILE, shift)
    return Answer(text=f"Accepted in {FILE}: {options.series} since {since}.", data=shift)
