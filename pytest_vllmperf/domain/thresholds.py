"""Limits, how the right one is found for a value, and the judgement itself."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from pytest_vllmperf.domain.choice import Rule
from pytest_vllmperf.domain.metrics import Metric, judgeable_metric
from pytest_vllmperf.domain.units import format_quantity
from pytest_vllmperf.errors import LimitTie

if TYPE_CHECKING:  # limits are read on every collection, summaries are made by a measurement only
    from pytest_vllmperf.domain.summary import Summary

__all__ = [
    "Interval",
    "Limit",
    "LimitTable",
    "Match",
    "Outcome",
    "Subject",
    "Thresholds",
    "Verdict",
    "applicable",
    "covers",
    "is_glob",
    "judge",
    "resolve",
    "resolve_tolerance",
]


class Outcome(str, enum.Enum):
    """What a judgement says. Only PASS is green."""

    PASS = "PASS"  # noqa: S105 (an outcome, no password)
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    """Too little evidence for either."""
    INVALID = "INVALID"
    """The measurement itself is broken; the value means nothing."""
    NOT_JUDGED = "NOT JUDGED"
    """Shown only: no limit matches, or too few samples for this statistic."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a value belongs to: the four keys limits match on."""

    hardware: str
    model: str
    engine: str
    workload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which subjects a table of limits is for; None matches anything, globs (``* ? [``) are allowed."""

    hardware: str | None = None
    model: str | None = None
    engine: str | None = None
    workload: str | None = None

    def specificity(self, subject: Subject) -> tuple[int, int] | None:
        """Keys given exactly and keys given by glob; None when ``subject`` does not match.

        A key that equals the subject's is exact even where it holds ``* ? [``.
        """
        exact = globs = 0
        for key in MATCH_KEYS:
            given, actual = getattr(self, key), getattr(subject, key)
            if given is None:
                continue
            if given == actual:
                exact += 1
            elif is_glob(given) and fnmatchcase(actual, given):
                globs += 1
            else:
                return None
        return exact, globs


MATCH_KEYS = ("hardware", "model", "engine", "workload")
"""What a ``match`` may name."""


def is_glob(pattern: str) -> bool:
    """True when ``pattern`` can match more than itself."""
    return any(c in pattern for c in "*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit, in the metric's base unit. ``tolerance`` is used by comparisons only.

    ``where`` is its place in the file (``thresholds.toml: limit[2].ttft_mean``) and ``text`` the
    limit as written (``≤ 600 ms``); both are for messages.
    """

    metric: str
    maximum: float | None
    minimum: float | None
    tolerance: float | None
    required: bool
    where: str
    text: str

    @property
    def absolute(self) -> bool:
        """True when it bounds a value; a ``tolerance`` alone does not."""
        return self.maximum is not None or self.minimum is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitTable:
    """One ``[[limit]]`` table."""

    match: Match
    limits: Mapping[str, Limit]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """A whole thresholds file. ``quality_tasks`` holds the options of ``[quality.tasks.*]`` as read.

    ``rounds`` is None where the file leaves it to the device; ``rules`` are those of ``[[choice]]``, ``sweep``
    the engines and workloads of ``[[sweep]]``, each pair once.
    """

    tables: tuple[LimitTable, ...] = ()
    launches: int = 1
    rounds: int | None = None
    inconclusive: str = "warn"
    quality_tasks: Mapping[str, Mapping[str, object]]
    rules: tuple[Rule, ...] = ()
    sweep: tuple[tuple[str, str], ...] = ()
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Bounds of what was judged: of a level in the metric's base unit, or of a change as a ratio.

    Args:
        low, high: The bounds; None where there is none (a lower bound alone decides paired answers).
        confidence: Of each bound alone for a level, of both together for a change.
        n: Replicates.
        replicate: What was repeated.
    """

    low: float | None
    high: float | None
    confidence: float | None
    n: int
    replicate: Literal["round", "launch", "pair", "question", "probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One judgement, with the numbers that led to it.

    ``limit`` is None when none matched; ``built_in`` is True for a limit nobody wrote down (failed
    requests are never accepted silently), which alone does not make a run a judged one.

    Args:
        outcome: What it says.
        engine, workload, metric: What was judged.
        value: The level, in the metric's base unit.
        n: Samples behind it.
        limit: What it was judged by.
        reason: One sentence.
        built_in: See above.
        interval: Bounds, where there are several replicates.
        launches: Launches the value comes from, where they matter: what changes from launch to launch is not covered
            by one of them. None for answers, and where nothing varies.
        against: The engine this one was compared with; None for a limit on a level.
        baseline: That engine's level.
        change: value / baseline - 1; for a share, value - baseline.
    """

    outcome: Outcome
    engine: str
    workload: str
    metric: str
    value: float | None
    n: int
    limit: Limit | None
    reason: str
    built_in: bool = False
    interval: Interval | None = None
    launches: int | None = None
    against: str | None = None
    baseline: float | None = None
    change: float | None = None

    @property
    def word(self) -> str:
        """The outcome for people: a level that one launch met may be missed by the next."""
        once = self.launches == 1 and self.outcome is Outcome.PASS and not self.built_in
        return f"{self.outcome} (1 launch)" if once else str(self.outcome)

    @property
    def subject(self) -> str:
        """The engine, and what it was compared with, for tables."""
        return self.engine if self.against is None else f"{self.engine} against {self.against}"

    def counts_as_failure(self, *, inconclusive_fails: bool) -> bool:
        """True when this judgement alone makes its test fail."""
        if self.outcome is Outcome.INCONCLUSIVE:
            return inconclusive_fails or (self.limit is not None and self.limit.required)
        return self.outcome in (Outcome.FAIL, Outcome.INVALID)


def resolve(thresholds: Thresholds, subject: Subject, metric: str) -> Limit | None:
    """The limit for one metric of ``subject``, or None.

    Of the matching tables that bound this metric, the one with most keys given exactly wins, then the one
    with most keys given by glob.

    Raises:
        LimitTie: Two tables are left; the message names both.
    """
    return _best(thresholds, subject, metric, lambda limit: limit.absolute)


def resolve_tolerance(thresholds: Thresholds, subject: Subject, metric: str) -> Limit:
    """By how much ``subject`` may be worse than what it is compared with: the tolerance that matches best.

    Where the file gives none, it is the catalogue's. The limit returned bounds no level.

    Raises:
        UnknownMetric: ``metric`` is not in the catalogue, or is a bare distribution.
        LimitTie: Two tables give a tolerance and match equally well.
    """
    entry = judgeable_metric(metric)
    given = _best(thresholds, subject, metric, lambda limit: limit.tolerance is not None)
    tolerance = entry.tolerance if given is None or given.tolerance is None else given.tolerance
    return Limit(
        metric=metric,
        maximum=None,
        minimum=None,
        tolerance=tolerance,
        required=given is not None and given.required,
        where="the catalogue's tolerance" if given is None else given.where,
        text=f"within {format_quantity(tolerance, unit='ratio')}",
    )


def _best(thresholds: Thresholds, subject: Subject, metric: str, wanted: Callable[[Limit], bool]) -> Limit | None:
    found: list[tuple[tuple[int, int], LimitTable, Limit]] = []
    for table in thresholds.tables:
        limit = table.limits.get(metric)
        rank = table.match.specificity(subject)
        if limit is not None and wanted(limit) and rank is not None:
            found.append((rank, table, limit))
    if not found:
        return None
    best = max(rank for rank, _, _ in found)
    winners = [(table, limit) for rank, table, limit in found if rank == best]
    if len(winners) > 1:
        tables = " and ".join(f"{table.where} ({limit.text})" for table, limit in winners)
        raise LimitTie(
            f"{metric} of engine {subject.engine!r}, workload {subject.workload!r}, model {subject.model!r} on "
            f"{subject.hardware!r} is claimed equally by {tables}: each gives {best[0]} keys exactly and {best[1]} "
            "by glob; give one of them another key in its match"
        )
    return winners[0][1]


def applicable(
    thresholds: Thresholds, *, hardware: str, models: Mapping[str, str]
) -> tuple[tuple[LimitTable, Limit], ...]:
    """Every limit that could bound something measured here, with its table, in the order of the file.

    Args:
        thresholds: The whole file.
        hardware: This machine's, as limits match it.
        models: Model name by engine name, for the engines of this run. Workloads are left open: the
            limits returned are meant to be checked off with :func:`covers`.
    """
    return tuple(
        (table, limit)
        for table in thresholds.tables
        if any(_matches_apart_from_workload(table.match, hardware, engine, model) for engine, model in models.items())
        for limit in table.limits.values()
        if limit.absolute
    )


def _matches_apart_from_workload(match: Match, hardware: str, engine: str, model: str) -> bool:
    subject = Subject(hardware=hardware, model=model, engine=engine, workload=match.workload or "")
    return match.specificity(subject) is not None


def covers(table: LimitTable, limit: Limit, verdict: Verdict, *, hardware: str, models: Mapping[str, str]) -> bool:
    """True when ``verdict`` looked at a value that ``limit`` of ``table`` is for, even if another limit won."""
    model = models.get(verdict.engine)
    if model is None or verdict.metric != limit.metric:
        return False
    subject = Subject(hardware=hardware, model=model, engine=verdict.engine, workload=verdict.workload)
    return table.match.specificity(subject) is not None


def judge(summary: Summary, metric: str, limit: Limit | None) -> Verdict:
    """Judge one metric of one measurement against ``limit``.

    A broken measurement is INVALID; so is a value that is missing although a limit asks for it. Too few
    samples for the statistic are NOT JUDGED, or INCONCLUSIVE where the limit is ``required``.

    Raises:
        UnknownMetric: ``metric`` is not in the catalogue, or is a bare distribution.
    """
    entry = judgeable_metric(metric)
    measured = summary.metrics.get(metric)
    value = measured.value if measured is not None else None
    if value is not None and not math.isfinite(value):
        value = None
    n = measured.n if measured is not None else 0
    missing = (measured.missing if measured is not None else None) or "this measurement does not include it"
    outcome, reason = _judged(summary, entry, value, n, missing, limit)
    return Verdict(
        outcome=outcome,
        engine=summary.engine,
        workload=summary.workload,
        metric=metric,
        value=value,
        n=n,
        limit=limit,
        reason=reason,
    )


def _judged(
    summary: Summary, entry: Metric, value: float | None, n: int, missing: str, limit: Limit | None
) -> tuple[Outcome, str]:
    if summary.invalid:
        more = len(summary.invalid) - 1
        return Outcome.INVALID, summary.invalid[0] + (f" (and {more} more)" if more else "")
    if limit is None:
        return Outcome.NOT_JUDGED, "no limit matches"
    if value is None:
        return Outcome.INVALID, f"{entry.label} was not measured: {missing}"
    if n < entry.minimum_samples:
        outcome = Outcome.INCONCLUSIVE if limit.required else Outcome.NOT_JUDGED
        return outcome, f"{entry.label} not judged, n = {n} ({entry.statistic or 'it'} needs {entry.minimum_samples})"
    return _compared(entry, value, limit)


def _compared(entry: Metric, value: float, limit: Limit) -> tuple[Outcome, str]:
    """PASS or FAIL, with a reason such as ``TTFT mean 412 ms exceeds ≤ 300 ms by 37 %``."""
    for bound, verb, missed in (
        (limit.maximum, "exceeds", limit.maximum is not None and value > limit.maximum),
        (limit.minimum, "falls below", limit.minimum is not None and value < limit.minimum),
    ):
        if missed and bound is not None:
            by = f" by {format_quantity(abs(value - bound) / bound, unit='ratio', digits=2)}" if bound else ""
            return Outcome.FAIL, f"{entry.label} {_told_apart(value, bound, entry.unit)} {verb} {limit.text}{by}"
    return Outcome.PASS, f"{entry.label} {format_quantity(value, unit=entry.unit)} meets {limit.text}"


def _told_apart(value: float, bound: float, unit: str) -> str:
    """``value`` with as many digits as it takes to look different from the bound it missed."""
    return next(
        (
            text
            for digits in range(3, 17)
            if (text := format_quantity(value, unit=unit, digits=digits))
            != format_quantity(bound, unit=unit, digits=digits)
        ),
        repr(value),
    )
