"""Limits, how the right one is found for a value, and the judgement itself."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.summary import Summary

__all__ = ["Limit", "LimitTable", "Match", "Outcome", "Subject", "Thresholds", "Verdict", "judge", "resolve"]


class Outcome(str, enum.Enum):
    """What a judgement says. Only PASS is green."""

    PASS = "PASS"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitTable:
    """One ``[[limit]]`` table."""

    match: Match
    limits: Mapping[str, Limit]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """A whole thresholds file. ``quality_tasks`` holds the options of ``[quality.tasks.*]`` as read."""

    tables: tuple[LimitTable, ...] = ()
    launches: int = 1
    inconclusive: str = "warn"
    quality_tasks: Mapping[str, Mapping[str, object]]
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One judgement, with the numbers that led to it.

    ``limit`` is None when none matched; ``built_in`` is True for a limit nobody wrote down (failed
    requests are never accepted silently), which alone does not make a run a judged one.
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

    def counts_as_failure(self, *, inconclusive_fails: bool) -> bool:
        """True when this judgement alone makes its test fail."""
        if self.outcome is Outcome.INCONCLUSIVE:
            return inconclusive_fails or (self.limit is not None and self.limit.required)
        return self.outcome in (Outcome.FAIL, Outcome.INVALID)
