"""Compare two runs, or two engines of one run, value by value.

A and B are a report.json or a folder with one, or runs of the history (a number, latest, latest~1); or the names of
two engines of the run that --report names. Changes are B against A. Marked "better" or "worse" is what moved by more
than the metric's tolerance in the catalogue. That is no verdict: two launches of one and the same engine differ too,
and only launches taken in turn (pytest suites/ --vllmperf-compare A:B) tell which changes would come again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_vllmperf.commands import Answer, columns

if TYPE_CHECKING:
    from pytest_vllmperf.domain.metrics import Metric
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.summary import Summary

__all__ = ["Difference", "add_arguments", "differences", "run"]

_SHOWN = ("mean", "p50", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of both sides, in its base unit; ``change`` is B / A − 1, None where there is no ratio."""

    subject: str
    metric: str
    unit: str
    a: float | None
    b: float | None
    change: float | None
    judgement: Literal["better", "worse", "same", "only in A", "only in B"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("a", metavar="A", help="the run, or the engine, to compare with")
    parser.add_argument("b", metavar="B", help="the run, or the engine, that is compared")
    parser.add_argument("--report", default="reports/latest", metavar="SOURCE", help="the run of two engines' names")
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help="only this metric (repeatable)")
    parser.add_argument("--changed", action="store_true", help="only what moved by more than its tolerance")
    parser.add_argument(
        "--storage", type=Path, default=Path(".benchmarks"), metavar="DIR", help="the history (default: .benchmarks)"
    )


def run(options: argparse.Namespace) -> Answer:
    """Find both, compare, print."""
    from pytest_vllmperf.domain.metrics import metric
    from pytest_vllmperf.domain.units import format_quantity

    wanted = {metric(name).name for name in options.metric}
    a, b, names = _sides(options)
    found = [d for d in differences(a, b, wanted=wanted) if not options.changed or d.judgement in ("better", "worse")]
    rows = [
        (
            d.subject,
            d.metric,
            format_quantity(d.a, unit=d.unit),
            format_quantity(d.b, unit=d.unit),
            "" if d.change is None else f"{100 * d.change:+.1f} %",
            d.judgement,
        )
        for d in found
    ]
    head = ("measurement", "metric", names[0], names[1], "change", "")
    if len(set(names)) == 1:
        head = ("measurement", "metric", "A", "B", "change", "")
    worse, better = (sum(d.judgement == word for d in found) for word in ("worse", "better"))
    table = columns(head, rows, right=(head[2], head[3], "change")) if rows else "Nothing to compare."
    told = f"{better} better, {worse} worse of {len(found)} beyond their tolerances; one launch each: not a verdict."
    return Answer(
        text=f"{table}\n{told}" if rows else table,
        data={"a": names[0], "b": names[1], "better": better, "worse": worse, "differences": found},
    )


Side = Mapping[str, "Summary"]
"""Measurements by what both sides call them."""


def _sides(options: argparse.Namespace) -> tuple[Side, Side, tuple[str, str]]:
    """Both sides' measurements and names: engines of one run by workload, runs by engine and workload."""
    from pytest_vllmperf.errors import HistoryError
    from pytest_vllmperf.recall import find_report

    root: Path = options.directory
    storage = root / options.storage
    try:
        one = find_report(options.report, directory=root, storage=storage)
    except HistoryError:
        one = None
    if one is not None and {options.a, options.b} <= {summary.engine for summary in one.summaries}:
        sides = [{s.workload: s for s in one.summaries if s.engine == name} for name in (options.a, options.b)]
        return sides[0], sides[1], (options.a, options.b)
    reports = [find_report(source, directory=root, storage=storage) for source in (options.a, options.b)]
    named = [report.started_at[:16].replace("T", " ") for report in reports]
    return _by_subject(reports[0]), _by_subject(reports[1]), (named[0], named[1])


def _by_subject(report: Report) -> Side:
    return {f"{s.engine} / {s.workload}": s for s in report.summaries}


def differences(a: Side, b: Side, *, wanted: set[str]) -> Iterator[Difference]:
    """Every scalar, and mean, p50 and p99 of every distribution, of all measurements; or the metrics ``wanted``.

    Values of INVALID measurements, and statistics with too few samples, are not compared.
    """
    from pytest_vllmperf.domain.metrics import metric

    for subject in dict.fromkeys((*a, *b)):
        names = dict.fromkeys(name for side in (a, b) if subject in side for name in side[subject].metrics)
        for entry in map(metric, names):
            shown = not entry.distribution and entry.statistic in (None, *_SHOWN)
            if entry.name in wanted or (not wanted and shown):
                values = [_value(side.get(subject), entry) for side in (a, b)]
                if values != [None, None]:
                    yield _difference(subject, entry, values[0], values[1])


def _value(summary: Summary | None, entry: Metric) -> float | None:
    found = None if summary is None or summary.invalid else summary.metrics.get(entry.name)
    return None if found is None or found.n < entry.minimum_samples else found.value


def _difference(subject: str, entry: Metric, a: float | None, b: float | None) -> Difference:
    from pytest_vllmperf.domain.metrics import Better

    change = b / a - 1 if a and b is not None else None
    judgement: Literal["better", "worse", "same", "only in A", "only in B"] = "same"
    if a is None or b is None:
        judgement = "only in B" if a is None else "only in A"
    elif entry.better is not Better.NEITHER and abs(b - a) > entry.tolerance * abs(a):
        judgement = "better" if (b < a) == (entry.better is Better.LOWER) else "worse"
    return Difference(subject=subject, metric=entry.name, unit=entry.unit, a=a, b=b, change=change, judgement=judgement)
