"""What calibrating proposed, as a section of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_vllmperf.domain.calibration import ANSWERS_ERROR, ERROR, Action, Proposal
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.section import Cell, Section, Table
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["calibration_section"]

_HOW = (
    "A proposed limit lies by the metric's tolerance in the catalogue beyond where one more launch of the unchanged "
    f"engine stays with {1 - ERROR:.0%} (Student's prediction bound of the logarithms over launches): launches of one "
    "run share what differs between days and machines, and the tolerance is for that. "
    f"A share of right answers gets its exact {1 - ANSWERS_ERROR:.1%} lower bound. Limits that are there are "
    "tightened, never loosened without --vllmperf-force."
)


def calibration_section(proposals: Sequence[Proposal], *, file: str, failure: str | None) -> Section:
    """The table of proposals; ``failure`` says why ``file`` was not written, None where it was."""
    done = Counter(proposal.action for proposal in proposals)
    counted = ", ".join(f"{done[a]} {a}" for a in Action if done[a] and a is not Action.NONE)
    written = failure or f"{file}: {counted or 'no limit could be proposed'}"
    refused = [p for p in proposals if p.action is Action.NONE]
    without = (f"{len(refused)} without a limit: {_reasons(refused)}",) if refused else ()
    return Section(
        id="calibration",
        title="Proposed limits",
        sentences=(written, *_far(proposals), *without),
        tables=(
            Table(
                head=("engine", "workload", "metric", "level", "sd", "launches", "so far", "proposed", "limit", "why"),
                rows=tuple(_row(proposal) for proposal in proposals),
                right=("level", "sd", "launches", "proposed"),
            ),
        ),
        notes=(_HOW,),
        kind="invalid" if failure else "",
    )


def _row(proposal: Proposal) -> tuple[str | Cell, ...]:
    unit = metric(proposal.metric).unit
    return (
        proposal.subject.engine,
        proposal.subject.workload,
        proposal.metric,
        Cell(text=format_quantity(proposal.level, unit=unit), value=proposal.level),
        Cell(text=format_quantity(proposal.spread, unit="ratio", digits=2), value=proposal.spread),
        str(proposal.launches),
        proposal.existing.text if proposal.existing else "",
        Cell(text=format_quantity(proposal.bound, unit=unit), value=proposal.bound),
        str(proposal.action),
        proposal.reason,
    )


_FAR = 2.0


def _far(proposals: Sequence[Proposal]) -> tuple[str, ...]:
    """A warning where limits lie so far from their levels that they would let much pass."""
    apart = {
        p: max(p.bound, p.level) / min(p.bound, p.level)
        for p in proposals
        if p.change is not None and p.bound and p.level and p.spread is not None
    }
    far = [p for p, ratio in apart.items() if ratio > _FAR]
    if not far:
        return ()
    worst = max(far, key=apart.__getitem__)
    where = f"{worst.subject.engine} × {worst.subject.workload} {worst.metric}"
    more = "the launches differ much, and more of them (--vllmperf-launches=8) bring limits nearer"
    return (f"{len(far)} far from the level, up to {apart[worst]:.2g} times ({where}): {more}",)


_REASONS_SHOWN = 3


def _reasons(proposals: Sequence[Proposal]) -> str:
    """The most frequent reasons, each once, with where it applies first."""
    counted = Counter(p.reason for p in proposals)
    first = {p.reason: p for p in reversed(proposals)}
    shown = [
        f"{first[reason].subject.engine} × {first[reason].subject.workload} {first[reason].metric}"
        f"{f' and {count - 1} more' if count > 1 else ''}: {reason}"
        for reason, count in counted.most_common(_REASONS_SHOWN)
    ]
    more = len(counted) - len(shown)
    return "; ".join([*shown, *([f"and {more} more reasons in the report"] if more else [])])
