"""The whole run in one frozen value: what every writer (terminal, Markdown, JSON) renders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.environment import Environment
from pytest_vllmperf.domain.metrics import METRICS
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.thresholds import Outcome, Verdict
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["EngineReport", "Report", "Row", "headline", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What became of one engine of the matrix.

    ``state`` is ``measured``, ``skipped`` or ``failed``; ``reason`` says why for the latter two.
    ``launches`` counts launches in this run. Flags and command never hold a secret.
    """

    name: str
    model: str
    state: str
    reason: str | None
    command: tuple[str, ...]
    env: Mapping[str, str]
    version: str | None
    log_path: str | None
    launches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run. ``problems`` are run-level reasons not to be green (nothing judged, unused limits, …)."""

    started_at: str
    duration_s: float
    environment: Environment
    engines: tuple[EngineReport, ...]
    summaries: tuple[Summary, ...]
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the engine × workload × metric table, as text."""

    engine: str
    workload: str
    metric: str
    value: str
    n: str
    limit: str
    verdict: str


def rows(report: Report) -> tuple[Row, ...]:
    """The table: everything judged, in the order it was judged, each subject and metric once."""
    table: dict[tuple[str, str, str], Row] = {}
    for verdict in report.verdicts:
        unit = METRICS[verdict.metric].unit
        table[verdict.engine, verdict.workload, verdict.metric] = Row(
            engine=verdict.engine,
            workload=verdict.workload,
            metric=verdict.metric,
            value=format_quantity(verdict.value, unit=unit),
            n=str(verdict.n),
            limit=verdict.limit.text if verdict.limit else "",
            verdict=_verdict_cell(verdict),
        )
    return tuple(table.values())


def _verdict_cell(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.NOT_JUDGED:
        return "no limit" if verdict.limit is None else f"not judged, n = {verdict.n}"
    return str(verdict.outcome)


def headline(verdicts: Sequence[Verdict], engines: Iterable[EngineReport], problems: Sequence[str]) -> str:
    """The verdict of the run in one sentence."""
    counts = Counter(v.outcome for v in verdicts)
    judged = sum(n for outcome, n in counts.items() if outcome is not Outcome.NOT_JUDGED)
    broken = [e.name for e in engines if e.state == "failed"]
    parts = []
    if broken:
        parts.append(f"{', '.join(broken)} failed to start")
    for outcome in (Outcome.INVALID, Outcome.FAIL, Outcome.INCONCLUSIVE):
        if counts[outcome]:
            parts.append(f"{counts[outcome]} {outcome}")
    if not judged:
        parts.append("nothing was judged")
    elif not parts:
        parts.append("every limit held")
    tail = f" of {judged} limits judged" if judged else ""
    sentence = "; ".join(parts)
    if problems:
        sentence += f"; {len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return f"{sentence[0].upper()}{sentence[1:]} ({counts[Outcome.PASS]} PASS{tail})"
