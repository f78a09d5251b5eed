"""Comparisons as sections of the report: the plain sentence, a table, and every change with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_vllmperf.domain.comparison import conclusion, shown_change
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.section import Cell, Forest, ForestRow, Kind, Section, Table, section_id
from pytest_vllmperf.domain.thresholds import Outcome, Verdict
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["comparison_sections"]

_KINDS: dict[Outcome, Kind] = {
    Outcome.PASS: "pass",
    Outcome.FAIL: "fail",
    Outcome.INVALID: "invalid",
    Outcome.INCONCLUSIVE: "inconclusive",
    Outcome.NOT_JUDGED: "shown",
}
_HOW = (
    "Both engines were launched alternately; each pair of launches gives one ratio. PASS: worse by the tolerance is "
    "ruled out. FAIL: worse, and not shown to be within it. INCONCLUSIVE: neither, when the pairs were used up."
)
_WORST_FIRST = (Outcome.FAIL, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.PASS, Outcome.NOT_JUDGED)


def comparison_sections(verdicts: Sequence[Verdict]) -> tuple[Section, ...]:
    """One section for each comparison among ``verdicts``."""
    pairs = dict.fromkeys((v.against, v.engine) for v in verdicts if v.against is not None)
    return tuple(
        _section(str(baseline), candidate, [v for v in verdicts if (v.against, v.engine) == (baseline, candidate)])
        for baseline, candidate in pairs
    )


def _section(baseline: str, candidate: str, verdicts: Sequence[Verdict]) -> Section:
    worst = min((v.outcome for v in verdicts), key=_WORST_FIRST.index)
    intervals = [v for v in verdicts if _has_interval(v)]
    rows = tuple(_forest_row(v) for v in intervals)
    forest = (Forest(title="change of each metric", rows=rows),) if rows else ()
    return Section(
        id=section_id("comparison", baseline, candidate),
        title=f"{candidate} against {baseline}",
        sentences=(conclusion(verdicts),),
        tables=(_table(baseline, candidate, verdicts),),
        forests=forest,
        notes=(_HOW,),
        kind=_KINDS[worst],
    )


def _table(baseline: str, candidate: str, verdicts: Sequence[Verdict]) -> Table:
    right = (baseline, candidate, "change [interval]", "pairs")
    return Table(
        head=("workload", "metric", baseline, candidate, "change [interval]", "allowed", "pairs", "verdict"),
        rows=tuple(_row(v) for v in verdicts),
        right=tuple(dict.fromkeys(right)),
    )


def _row(verdict: Verdict) -> tuple[str | Cell, ...]:
    unit, kind = metric(verdict.metric).unit, _KINDS[verdict.outcome]
    return (
        verdict.workload,
        verdict.metric,
        Cell(text=format_quantity(verdict.baseline, unit=unit), value=verdict.baseline),
        Cell(text=format_quantity(verdict.value, unit=unit), value=verdict.value),
        Cell(text=shown_change(verdict) or "", value=verdict.change),
        verdict.limit.text if verdict.limit else "",
        str(verdict.n),
        Cell(text=verdict.word, kind=kind),
    )


def _has_interval(verdict: Verdict) -> bool:
    interval = verdict.interval
    return interval is not None and interval.low is not None and interval.high is not None


def _forest_row(verdict: Verdict) -> ForestRow:
    interval = verdict.interval
    assert interval is not None  # see _has_interval
    assert interval.low is not None
    assert interval.high is not None
    assert verdict.change is not None
    return ForestRow(
        label=f"{metric(verdict.metric).label} · {verdict.workload}",
        estimate=verdict.change,
        low=interval.low,
        high=interval.high,
        kind=_KINDS[verdict.outcome],
        text=verdict.word,
    )
