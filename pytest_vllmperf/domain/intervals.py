"""Absolute limits with an interval: the level of one engine over several rounds or launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_vllmperf.domain.bounds import mean_bounds, unusable
from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.domain.metrics import STATISTICS, Metric, judgeable_metric
from pytest_vllmperf.domain.thresholds import Limit, Outcome
from pytest_vllmperf.domain.units import format_quantity
from pytest_vllmperf.errors import ConfigError

__all__ = [
    "ERROR",
    "LAUNCH_LOOKS",
    "TAIL_LOOKS",
    "AbsoluteVerdict",
    "Replicate",
    "judge_absolute",
    "judged_by_worst",
    "looks_for",
]

Replicate = Literal["round", "launch"]

LAUNCH_LOOKS = Looks(at=(3, 5, 8))
"""Launches after which a limit is judged."""
TAIL_LOOKS = Looks(at=(5, 8))
"""The same for p99, which three values cannot bound."""
ERROR = 0.05
"""Probability of a wrong PASS, and of a wrong FAIL, over all looks together.

High percentiles get a share of it, by how many samples of a replicate lie beyond them: from few, their estimates are
skewed and too low on average, so that the bounds cover less than their nominal share (``benchmarks/RESULTS.md``).
"""
_SHARES = ((50, 1.0), (8, 1 / 2), (4, 1 / 4), (0, 1 / 8))
"""From how many samples beyond a percentile on which share: 50 are a p95 of 1000 requests, or a p99 of 5000."""

_TAIL_QUANTILE = 0.99
_HIGH_QUANTILE = 0.9
_WORST_UNITS = ("B", "count", "ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsoluteVerdict:
    """One judgement of a level against a limit.

    Args:
        outcome: PASS or FAIL when the whole interval lies on one side of the limit.
        metric: Name in the catalogue.
        value: Level over the replicates, in the metric's base unit (geometric mean; the worst one where
            :func:`judged_by_worst`).
        low: Lower bound of the level; None where there is no interval.
        high: Upper bound of the level.
        confidence: Of each bound alone, at this look.
        n: Rounds or launches.
        replicate: Which of the two.
        next_look: Replicates to have before judging again; None when final.
        limit: The limit judged against.
        reason: One sentence.
    """

    outcome: Outcome
    metric: str
    value: float | None
    low: float | None
    high: float | None
    confidence: float | None
    n: int
    replicate: Replicate
    next_look: int | None
    limit: Limit
    reason: str

    @property
    def word(self) -> str:
        """The outcome for people. Rounds of one launch do not cover what changes from launch to launch."""
        return f"{self.outcome} (1 launch)" if self.replicate == "round" else str(self.outcome)


def judged_by_worst(entry: Metric) -> bool:
    """True when the worst replicate is judged, without a test: memory, counts and shares.

    Memory must fit at every launch, not on average, and one failed request is one too many.
    """
    return entry.unit in _WORST_UNITS


def looks_for(entry: Metric, budget: int) -> Looks:
    """The looks at ``entry`` when at most ``budget`` replicates are made.

    Raises:
        ConfigError: ``budget`` is below 1.
    """
    return (TAIL_LOOKS if _is_tail(entry) else LAUNCH_LOOKS).within(budget)


def judge_absolute(
    values: Sequence[float | None],
    limit: Limit,
    *,
    samples: int,
    replicate: Replicate,
    budget: int,
    looks: Looks | None = None,
) -> AbsoluteVerdict:
    """Judge the replicates made so far against an absolute limit.

    Student's t bounds of the mean of log(value) (of the value itself where one is 0): PASS when
    the whole interval meets the limit, FAIL when none of it does, INCONCLUSIVE otherwise. A p99 never
    passes on fewer than five replicates.

    Args:
        values: The metric of each round or launch; None for one that has no value.
        limit: Maximum, minimum or both.
        samples: Samples (requests) behind each value, the smallest count of them.
        replicate: What was repeated.
        budget: Replicates made at most, fixed before the first.
        looks: When to judge; by default :func:`looks_for` the budget. Rounds are judged once, when all are made.

    Raises:
        UnknownMetric: The limit's metric is not in the catalogue, or is a bare distribution.
        ConfigError: ``budget`` is below 1, or the limit bounds nothing.
    """
    entry = judgeable_metric(limit.metric)
    if not limit.absolute:
        raise ConfigError(f"{limit.where}: {entry.name} has neither max nor min, so nothing to judge a level against")
    looks, n = looks or looks_for(entry, budget), len(values)
    known = [float(v) for v in values if v is not None]
    broken = unusable(values, what=replicate) or (None if samples > 0 else "no samples behind the value")
    if broken is not None:
        found = _Found(Outcome.INVALID, f"{entry.label} was not measured: {broken}")
    elif samples < entry.minimum_samples:
        few = f"{entry.label} not judged, n = {samples} ({entry.statistic} needs {entry.minimum_samples})"
        found = _Found(Outcome.INCONCLUSIVE if limit.required else Outcome.NOT_JUDGED, few)
    elif judged_by_worst(entry):
        found = _by_worst(entry, known, limit, replicate)
    else:
        error = _error(entry, samples) * looks.share(n)
        found = _by_interval(entry, known, limit, replicate, looks, error)
    more = found.outcome is Outcome.INCONCLUSIVE and samples >= entry.minimum_samples
    return AbsoluteVerdict(
        outcome=found.outcome,
        metric=entry.name,
        value=found.value,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        n=n,
        replicate=replicate,
        next_look=looks.following(n) if more else None,
        limit=limit,
        reason=found.reason,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    outcome: Outcome
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None


def _quantile(entry: Metric) -> float | None:
    return STATISTICS[entry.statistic].quantile if entry.statistic else None


def _is_tail(entry: Metric) -> bool:
    quantile = _quantile(entry)
    return quantile is not None and quantile >= _TAIL_QUANTILE


def _by_worst(entry: Metric, values: Sequence[float], limit: Limit, replicate: Replicate) -> _Found:
    over = limit.maximum is not None and max(values) > limit.maximum
    under = limit.minimum is not None and min(values) < limit.minimum
    worst = min(values) if under or limit.maximum is None else max(values)
    told = f"{entry.label} {format_quantity(worst, unit=entry.unit)}, the worst of {_count(len(values), replicate)},"
    if over or under:
        return _Found(Outcome.FAIL, f"{told} misses {limit.text}", worst)
    return _Found(Outcome.PASS, f"{told} meets {limit.text}", worst)


def _error(entry: Metric, samples: int) -> float:
    """The error of each bound over all looks; ``samples`` are those of one replicate."""
    quantile = _quantile(entry)
    if quantile is None or quantile < _HIGH_QUANTILE:
        return ERROR
    beyond = round(samples * (1 - quantile), 9)
    return ERROR * next(share for least, share in _SHARES if beyond >= least)


def _by_interval(
    entry: Metric, values: Sequence[float], limit: Limit, replicate: Replicate, looks: Looks, error: float
) -> _Found:
    n = len(values)
    logs = min(values) > 0
    bounds = mean_bounds([math.log(v) for v in values] if logs else values, error_low=error, error_high=error)
    if bounds is None:
        return _Found(
            Outcome.INCONCLUSIVE,
            f"{entry.label} {format_quantity(values[0], unit=entry.unit)}: one {replicate} has no interval",
            values[0],
        )
    value, low, high = (math.exp(x) if logs else x for x in (bounds.mean, bounds.low, bounds.high))
    shown = " … ".join(format_quantity(x, unit=entry.unit) for x in (low, high))
    told = f"{entry.label} {format_quantity(value, unit=entry.unit)} [{shown}] over {_count(n, replicate)}"
    outcome, why = _decided(entry, low, high, limit, n, looks)
    return _Found(outcome, f"{told} {why}", value, low, high, 1 - error)


def _decided(entry: Metric, low: float, high: float, limit: Limit, n: int, looks: Looks) -> tuple[Outcome, str]:
    if n not in looks.at:
        return Outcome.INCONCLUSIVE, f"is not judged yet; the looks are at {', '.join(map(str, looks.at))}"
    if (limit.maximum is not None and low > limit.maximum) or (limit.minimum is not None and high < limit.minimum):
        return Outcome.FAIL, f"misses {limit.text}"
    inside = (limit.maximum is None or high <= limit.maximum) and (limit.minimum is None or low >= limit.minimum)
    if inside and _is_tail(entry) and n < TAIL_LOOKS.at[0]:
        return Outcome.INCONCLUSIVE, f"would meet {limit.text}, but a p99 needs {TAIL_LOOKS.at[0]} of them to pass"
    if inside:
        return Outcome.PASS, f"meets {limit.text}"
    following = looks.following(n)
    more = f"{following - n} more needed" if following else f"the budget of {looks.budget} is used up"
    return Outcome.INCONCLUSIVE, f"does not tell on which side of {limit.text} the level lies; {more}"


def _count(n: int, replicate: Replicate) -> str:
    plural = {"round": "rounds", "launch": "launches"}
    return f"{n} {replicate if n == 1 else plural[replicate]}"
