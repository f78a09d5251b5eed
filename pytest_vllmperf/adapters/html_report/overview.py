"""The run at a glance: engines against workloads, each cell with its headline numbers and how near its limits are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.html_report.table import css_class
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.units import format_quantity

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.html_report.table import Line
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Verdict

__all__ = ["Glance", "Overview", "overview"]

_HEADLINES = ("accuracy", "time_to_ready", "first_request_ttft", "output_throughput", "ttft_mean", "tpot_mean")
_LABELS = {
    "accuracy": "accuracy",
    "time_to_ready": "ready after",
    "first_request_ttft": "first TTFT",
    "ttft_mean": "TTFT",
    "tpot_mean": "TPOT",
}
"""What stands before a headline number; the others say by their unit what they are."""
_MOST_COLUMNS = 4
"""Engines are columns up to this many, and rows beyond."""
_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """One measurement. ``kind`` is that of its worst verdict and ``word`` its text, empty for a pass.

    ``used`` is the share of the limit it comes nearest to, in units of 100 (150 at most), ``told`` says so; None and
    empty without a limit.
    """

    target: str
    kind: str
    word: str
    numbers: tuple[tuple[str, str], ...]
    used: int | None
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A cell for each engine and workload, None where nothing was measured; ``corner`` names what the rows are.

    An engine that failed or was skipped says so in every cell.
    """

    corner: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Glance | None, ...]], ...]
    limits: bool


def overview(
    report: Report, targets: Mapping[tuple[str, str], str], lines: Mapping[tuple[str, str], Sequence[Line]]
) -> Overview | None:
    """Arrange every measurement; None without one."""
    cells = {(s.engine, s.workload): s for s in report.summaries if not s.experiment}
    if not cells:
        return None
    judged: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in report.verdicts:
        if verdict.limit is not None and not verdict.against:
            judged.setdefault((verdict.engine, verdict.workload), []).append(verdict)
    glances = {key: _glance(s, targets[key], lines.get(key, ()), judged.get(key, ())) for key, s in cells.items()}
    workloads = list(dict.fromkeys(workload for _, workload in cells))
    limits = any(glance.used is not None for glance in glances.values())
    for place, engine in enumerate(report.engines, 1):
        if engine.state != "measured":
            for workload in workloads:
                glances.setdefault((engine.name, workload), _never_ready(engine.state, f"e{place}"))
    engines = list(dict.fromkeys(engine for engine, _ in glances))
    if len(engines) <= _MOST_COLUMNS:
        rows = tuple((w, tuple(glances.get((e, w)) for e in engines)) for w in workloads)
        return Overview(corner="Workload", head=tuple(engines), rows=rows, limits=limits)
    rows = tuple((e, tuple(glances.get((e, w)) for w in workloads)) for e in engines)
    return Overview(corner="Engine", head=tuple(workloads), rows=rows, limits=limits)


def _never_ready(state: str, target: str) -> Glance:
    """An engine that failed or was skipped; ``target`` is the id of its card."""
    return Glance(target=target, kind=css_class(state), word=state, numbers=(), used=None, told="")


_WORST = ("fail", "invalid", "inconclusive", "pass")


def _glance(summary: Summary, target: str, lines: Sequence[Line], judged: Sequence[Verdict]) -> Glance:
    kinds = {line.kind for line in lines}
    kind = "invalid" if summary.invalid else next((kind for kind in _WORST if kind in kinds), "shown")
    nearest = max(
        ((share, v) for v in judged if (share := _used(v)) is not None), key=lambda found: found[0], default=None
    )
    told = ""
    if nearest is not None:
        share, verdict = nearest
        shown = format_quantity(share, unit="ratio", digits=2)
        told = f"{metric(verdict.metric).label} takes {shown} of its limit, the most of {len(judged)}"
    return Glance(
        target=target,
        kind=kind,
        word="" if kind in ("pass", "shown") else kind.upper(),
        numbers=tuple(_numbers(summary)),
        used=None if nearest is None else min(150, round(_WIDTH * nearest[0])),
        told=told,
    )


def _numbers(summary: Summary) -> list[tuple[str, str]]:
    found = [(name, summary.metrics.get(name)) for name in _HEADLINES]
    return [
        (_LABELS.get(name, ""), format_quantity(value.value, unit=metric(name).unit))
        for name, value in found
        if value is not None and value.value is not None
    ]


def _used(verdict: Verdict) -> float | None:
    """How much of the room that its limit leaves a value takes: 1 at the limit, more beyond it."""
    limit, value = verdict.limit, verdict.value
    if limit is None or value is None or value <= 0:
        return None
    shares = [value / limit.maximum] if limit.maximum else []
    shares += [limit.minimum / value] if limit.minimum else []
    return max(shares, default=None)
