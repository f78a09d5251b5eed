"""The engine × workload × metric table: the report's rows with what a page needs beside their text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.html_report.trends import Trend, Trends
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.report import rows
from pytest_vllmperf.domain.thresholds import Outcome

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report, Row
    from pytest_vllmperf.domain.thresholds import Verdict

__all__ = ["PLOTTED", "Line", "css_class", "lines", "tally", "wrong"]


PLOTTED = ("ttft", "tpot", "e2el")
"""Distributions whose curve a measurement shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table.

    ``number`` is the value in its base unit, to sort by; ``target`` the id of its evidence: the curve of its
    distribution, else the measurement; ``engine`` the engine it is about;
    ``reason`` what the judgement said, and ``where`` the place of its limit. ``built_in`` is True
    where that limit is one nobody wrote down.
    """

    row: Row
    number: float | None
    kind: str
    target: str
    engine: str
    reason: str
    where: str
    built_in: bool
    trend: Trend | None


_KINDS = {
    "PASS": "pass",
    "FAIL": "fail",
    "INVALID": "invalid",
    "INCONCLUSIVE": "inconclusive",
    "measured": "pass",
    "failed": "fail",
    "skipped": "shown",
}


def css_class(word: str) -> str:
    """The class that colours an outcome or an engine's state; ``shown`` for everything that is neither.

    What stands in parentheses behind an outcome, such as ``PASS (1 launch)``, changes nothing.
    """
    return _KINDS.get(_outcome(word), "shown")


def _outcome(word: str) -> str:
    return word.partition(" (")[0]


def lines(report: Report, targets: Mapping[tuple[str, str], str], trends: Trends) -> tuple[Line, ...]:
    """Every row of :func:`pytest_vllmperf.domain.report.rows`, in its order.

    ``targets`` maps engine and workload to the id of their measurement.
    """
    verdicts = {(v.subject, v.workload, v.metric, str(v.outcome)): v for v in report.verdicts}
    numbers = {(s.engine, s.workload, name): value.value for s in report.summaries for name, value in s.metrics.items()}
    drawn = {
        (s.engine, s.workload, name)
        for s in report.summaries
        for name in PLOTTED
        if (whole := s.metrics.get(name)) is not None and whole.samples
    }
    return tuple(_line(row, verdicts, numbers, targets, trends, drawn) for row in rows(report))


def _line(
    row: Row,
    verdicts: Mapping[tuple[str, str, str, str], Verdict],
    numbers: Mapping[tuple[str, str, str], float | None],
    targets: Mapping[tuple[str, str], str],
    trends: Trends,
    drawn: Collection[tuple[str, str, str]],
) -> Line:
    key = (row.engine, row.workload, row.metric)
    outcome = _outcome(row.verdict) if css_class(row.verdict) != "shown" else str(Outcome.NOT_JUDGED)
    verdict = verdicts.get((*key, outcome))
    engine = verdict.engine if verdict is not None else row.engine
    target = targets.get((engine, row.workload), "engines")
    family = metric(row.metric).family
    number = verdict.value if verdict is not None else numbers.get(key)
    return Line(
        row=row,
        number=number,
        kind=css_class(row.verdict),
        target=f"{target}-{family}" if (engine, row.workload, family) in drawn else target,
        engine=engine,
        reason=verdict.reason if verdict is not None else "",
        where=verdict.limit.where if verdict is not None and verdict.limit is not None else "",
        built_in=verdict is not None and verdict.built_in,
        trend=None if verdict is not None and verdict.against else trends.of(*key, now=number),
    )


_TALLIED = (Outcome.FAIL, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.PASS)


def tally(table: Sequence[Line]) -> tuple[tuple[str, str, int, int], ...]:
    """Word, class and number of rows of each outcome, worst first, and of what is only shown.

    The last number counts those of them that were judged by a built-in limit.
    """
    groups = [
        (str(o), css_class(str(o)), [line for line in table if _outcome(line.row.verdict) == str(o)]) for o in _TALLIED
    ]
    groups.append(("shown", "shown", [line for line in table if line.kind == "shown"]))
    return tuple((word, kind, len(group), sum(line.built_in for line in group)) for word, kind, group in groups)


def wrong(table: Sequence[Line]) -> tuple[tuple[Line, str], ...]:
    """What was missed or is broken, FAIL first.

    Metrics of one broken measurement share a line, which then names them; others name theirs in the reason.
    """
    shared: dict[tuple[str, str, str, str], list[Line]] = {}
    for line in table:
        if line.kind not in ("pass", "shown"):
            row = line.row
            alone = row.metric if row.verdict != str(Outcome.INVALID) else ""
            shared.setdefault((row.verdict, row.engine, row.workload, f"{line.reason}\n{alone}"), []).append(line)
    worst = sorted(shared.values(), key=lambda group: group[0].row.verdict != str(Outcome.FAIL))
    return tuple((group[0], _named(group)) for group in worst)


def _named(group: Sequence[Line]) -> str:
    alone = len(group) == 1 and group[0].reason and group[0].row.verdict != str(Outcome.INVALID)
    return "" if alone else ", ".join(line.row.metric for line in group)
