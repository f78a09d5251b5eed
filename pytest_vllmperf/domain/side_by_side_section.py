"""Engines of an ordinary run against the first of them: how far apart they are, for what one launch of each can say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.comparison import COMPARED
from pytest_vllmperf.domain.metrics import Better, judgeable_metric
from pytest_vllmperf.domain.paired import signed_percent
from pytest_vllmperf.domain.section import Cell, Kind, Section, Table, section_id
from pytest_vllmperf.domain.summary import Replicates, Summary
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["Difference", "differences", "side_by_side_sections"]

_SHOWN = {**COMPARED, "load": (*COMPARED["load"], "e2el_mean", "host_memory_peak", "device_memory_peak")}
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of two engines.

    Args:
        workload, metric: What it is about.
        baseline, candidate: The levels, in the base unit.
        change: candidate / baseline - 1; for a share the difference.
        low, high: Welch's 95 % interval of ``change`` over the replicates of both; None without replicates.
        reading: ``worse`` or ``better`` beyond the catalogue's tolerance (with an interval that leaves out 0, where
            there is one), ``same`` within it, else ``unclear``. Never a verdict.
    """

    workload: str
    metric: str
    baseline: float
    candidate: float
    change: float
    low: float | None
    high: float | None
    reading: str

    @property
    def shown(self) -> str:
        """``-29 % [-31 %, -27 %]``, ``+1.5 points``."""
        if judgeable_metric(self.metric).unit == "ratio":
            return f"{100 * self.change:+.1f} points"
        if self.low is None or self.high is None:
            return signed_percent(self.change)
        return f"{signed_percent(self.change)} [{signed_percent(self.low)}, {signed_percent(self.high)}]"


def differences(baseline: Summary, candidate: Summary) -> list[Difference]:
    """What sets two measurements of one workload apart; empty where either is unsound."""
    if baseline.invalid or candidate.invalid or baseline.kind != candidate.kind:
        return []
    found = []
    for name in _SHOWN.get(baseline.kind, ()):
        before, after = (s.metrics[name].value if name in s.metrics else None for s in (baseline, candidate))
        if before is None or after is None or not before > 0:
            continue
        share = judgeable_metric(name).unit == "ratio"
        low, high = (None, None) if share else _interval(name, baseline.replicates, candidate.replicates)
        change = after - before if share else after / before - 1
        found.append(
            Difference(
                workload=baseline.workload,
                metric=name,
                baseline=before,
                candidate=after,
                change=change,
                low=low,
                high=high,
                reading=_reading(name, change, low, high),
            )
        )
    return found


def _interval(name: str, before: Replicates | None, after: Replicates | None) -> tuple[float | None, float | None]:
    """Welch's interval of the ratio of geometric means, from rounds or launches of both."""
    if before is None or after is None or before.kind != after.kind:
        return None, None
    sides = [replicates.values.get(name, ()) for replicates in (before, after)]
    logs = [[math.log(v) for v in side if v is not None and v > 0] for side in sides]
    if any(len(side) < 2 or len(side) < len(given) for side, given in zip(logs, sides, strict=True)):
        return None, None
    from scipy.stats import ttest_ind

    if all(max(side) == min(side) for side in logs):
        ratio = math.expm1(logs[1][0] - logs[0][0])
        return ratio, ratio
    interval = ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(_CONFIDENCE)
    return math.expm1(float(interval.low)), math.expm1(float(interval.high))


def _reading(name: str, change: float, low: float | None, high: float | None) -> str:
    entry = judgeable_metric(name)
    if entry.better is Better.NEITHER:
        return "unclear"
    sign = 1 if entry.better is Better.LOWER else -1
    known = low is None or high is None or low > 0 or high < 0
    if abs(change) <= entry.tolerance:
        return "same"
    return ("worse" if change * sign > 0 else "better") if known else "unclear"


def side_by_side_sections(
    engines: Sequence[str], summaries: Sequence[Summary], compared: Sequence[tuple[str, str]] = ()
) -> tuple[Section, ...]:
    """One section for each engine that measured something the first one measured too.

    ``engines`` is in the order of the matrix; pairs in ``compared`` (baseline, candidate) were launched in turn and
    judged, which says more.
    """
    mine = {(s.engine, s.workload): s for s in summaries if not s.experiment}
    ordered = [name for name in engines if any(engine == name for engine, _ in mine)]
    found = []
    for candidate in ordered[1:]:
        both = [
            (mine[ordered[0], workload], summary)
            for (engine, workload), summary in mine.items()
            if engine == candidate and (ordered[0], workload) in mine
        ]
        rows = [difference for before, after in both for difference in differences(before, after)]
        if rows and (ordered[0], candidate) not in compared:
            found.append(_section(ordered[0], candidate, rows, launches=_launches(both)))
    return tuple(found)


def _launches(both: Sequence[tuple[Summary, Summary]]) -> int:
    """Launches of each at least, of what was measured on several."""
    counts = [
        s.replicates.count if s.replicates is not None and s.replicates.kind == "launch" else 1
        for pair in both
        for s in pair
        if s.kind != "startup"
    ]
    return min(counts, default=1)


def _section(baseline: str, candidate: str, rows: Sequence[Difference], *, launches: int) -> Section:
    launched = "one launch of each" if launches == 1 else f"{launches} launches of each"
    how = (
        f"Not judged: {launched}, one after the other, and launches of one and the same engine differ too. "
        f"--vllmperf-compare={baseline}:{candidate} launches both in turn and judges. Intervals (95 %, Welch) are "
        "over rounds or launches; what differs between launches is not in an interval over rounds."
    )
    return Section(
        id=section_id("beside", baseline, candidate),
        title=f"{candidate} beside {baseline}",
        sentences=(f"{_sentence(rows)} ({launched}, unpaired: not a verdict)",),
        tables=(_table(baseline, candidate, rows),),
        notes=(how,),
    )


def _sentence(rows: Sequence[Difference]) -> str:
    told = [row for row in rows if row.reading in ("worse", "better")]
    parts = []
    for workload in dict.fromkeys(row.workload for row in told):
        changes = [
            f"{judgeable_metric(row.metric).label} {row.shown}"
            for row in told
            if row.workload == workload and not row.metric.startswith("e2el")  # follows from the other two
        ]
        parts += [f"{', '.join(changes)} at {workload}"] if changes else []
    return "; ".join(parts) if parts else "no clear change beyond the tolerances"


_KINDS: dict[str, Kind] = {"worse": "worse", "better": "better"}


def _table(baseline: str, candidate: str, rows: Sequence[Difference]) -> Table:
    head = ("workload", "metric", baseline, candidate, "change [interval]", "tolerance", "not judged")
    return Table(
        head=head,
        rows=tuple(
            (
                row.workload,
                row.metric,
                Cell(text=format_quantity(row.baseline, unit=judgeable_metric(row.metric).unit), value=row.baseline),
                Cell(text=format_quantity(row.candidate, unit=judgeable_metric(row.metric).unit), value=row.candidate),
                Cell(text=row.shown, value=row.change),
                format_quantity(judgeable_metric(row.metric).tolerance, unit="ratio"),
                Cell(text=row.reading, kind=_KINDS.get(row.reading, "")),
            )
            for row in rows
        ),
        right=head[2:6],
    )
