"""Limits proposed from launches: the level they showed, and a margin for what an unchanged engine does by chance."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_vllmperf.domain.bounds import mean_bounds, unusable
from pytest_vllmperf.domain.intervals import judged_by_worst
from pytest_vllmperf.domain.metrics import Better, Metric, judgeable_metric
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.thresholds import MATCH_KEYS, Limit, Match, Subject, Thresholds, resolve
from pytest_vllmperf.domain.units import format_quantity, parse_quantity

__all__ = ["ERROR", "LAUNCHES", "LEAST_LAUNCHES", "Action", "LimitChange", "Proposal", "propose", "proposed_level"]

LEAST_LAUNCHES = 3
"""Launches a limit is proposed from, at least: two give a spread nobody should believe."""
LAUNCHES = 5
"""Launches a limit is proposed from, unless told otherwise: the margin is 8 standard deviations after 3, 4 after 5."""
ERROR = 0.01
"""Probability that one more launch of the unchanged engine in the same session misses a proposed limit."""
ANSWERS_ERROR = 0.005
"""Likewise that the true share of right answers is below a proposed floor."""

BUILT_IN = frozenset(("error_rate",))
"""Metrics that are judged without a limit of the user's: proposing to accept failed requests would be the reverse."""


class Action(str, enum.Enum):
    """What becomes of a limit."""

    ADDED = "added"
    TIGHTENED = "tightened"
    LOOSENED = "loosened"
    KEPT = "kept"
    NONE = "no limit"
    """Nothing can be proposed; the reason says why."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """One bound to write into the table of limits whose ``match`` names exactly ``match``.

    ``value`` is as it is written: a quantity with its unit, or a bare number.
    """

    match: Match
    metric: str
    key: Literal["max", "min"]
    value: str | int | float
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What calibrating says about one metric.

    Args:
        subject: Whose limit it is.
        metric: Name in the catalogue.
        action: What becomes of the limit.
        reason: One sentence.
        level: Geometric mean over launches (the worst of them where it is judged by that), in the base unit.
        spread: Standard deviation between launches, as a share of the level; None for answers.
        launches: Launches behind it.
        existing: The limit that holds so far, whichever table gives it.
        bound: The proposed one, in the base unit.
        change: What to write; None where nothing changes.
    """

    subject: Subject
    metric: str
    action: Action
    reason: str
    level: float | None = None
    spread: float | None = None
    launches: int = 0
    existing: Limit | None = None
    bound: float | None = None
    change: LimitChange | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A level with the bound that leaves room for chance."""

    level: float
    spread: float | None
    bound: float
    told: str


def propose(summary: Summary, metric: str, *, subject: Subject, thresholds: Thresholds, force: bool) -> Proposal:
    """Propose the limit of one metric of one measurement.

    The bound lies by the metric's tolerance in the catalogue beyond where a further launch of the unchanged engine
    stays with 99 % (Student's prediction bound of the logarithms over launches): launches of one session share what
    differs between sessions, which they cannot tell. A share of right answers gets its exact 99.5 % lower bound. A
    limit that is there already is tightened; it is loosened only with ``force``.

    Raises:
        UnknownMetric: ``metric`` is not in the catalogue, or is a bare distribution.
        LimitTie: Two limits claim the value equally.
    """
    entry = judgeable_metric(metric)
    launches = _launches(summary)
    found = _found(summary, entry)
    if isinstance(found, str):
        return Proposal(subject=subject, metric=metric, action=Action.NONE, reason=found, launches=launches)
    key: Literal["max", "min"] = "max" if entry.better is Better.LOWER else "min"
    existing = resolve(thresholds, subject, metric)
    value, bound = _as_written(found.bound, entry)
    action, reason = _action(entry, existing, key, bound, found.level, force=force)
    change = None
    if action not in (Action.KEPT, Action.NONE):
        match = Match(**{name: getattr(subject, name) for name in MATCH_KEYS})
        change = LimitChange(match=match, metric=metric, key=key, value=value, comment=found.told)
    return Proposal(
        subject=subject,
        metric=metric,
        action=action,
        reason=f"{found.told}; {reason}{_wide(found, bound, launches)}",
        level=found.level,
        spread=found.spread,
        launches=launches,
        existing=existing,
        bound=bound,
        change=change,
    )


_WIDE = 0.5
_MANY_LAUNCHES = 8


def _wide(found: _Found, bound: float, launches: int) -> str:
    """What to do about a limit far away from its level."""
    ratio = max(bound, found.level) / min(bound, found.level) if min(bound, found.level) > 0 else 1.0
    if found.spread is None or ratio <= 1 + _WIDE or launches >= _MANY_LAUNCHES:
        return ""
    apart = f"{ratio:.1f} times apart, as {launches} launches differ much"
    return f"; {apart}: --vllmperf-launches={_MANY_LAUNCHES} tells more"


def _launches(summary: Summary) -> int:
    replicates = summary.replicates
    return replicates.count if replicates is not None and replicates.kind == "launch" else 1


def _found(summary: Summary, entry: Metric) -> _Found | str:
    """The level and its bound, or why there is none."""
    if summary.invalid:
        return f"the measurement is INVALID: {summary.invalid[0]}"
    if summary.failures:
        failed = sum(summary.failures.values())
        return f"{failed} of {summary.requests} requests failed: latencies of the survivors are no level"
    if entry.name in BUILT_IN:
        return "failed requests are judged against 0 without a limit"
    if entry.better is Better.NEITHER:
        return "neither direction is better: write such a limit by hand"
    if summary.kind == "quality":
        return _answers(summary, entry)
    launches, replicates = _launches(summary), summary.replicates
    if replicates is None or launches < LEAST_LAUNCHES:
        return f"{_times(launches)}, and {LEAST_LAUNCHES} are needed{_how(summary)}"
    if replicates.samples.get(entry.name, 0) < entry.minimum_samples:
        few = replicates.samples.get(entry.name, 0)
        return f"{few} samples a launch, and {entry.statistic or 'it'} needs {entry.minimum_samples}"
    values = replicates.values.get(entry.name, ())
    if (broken := unusable(values, what="launch")) is not None:
        return broken
    return proposed_level(entry, [float(v) for v in values if v is not None])


def _times(launches: int) -> str:
    return "measured on one launch" if launches == 1 else f"measured on {launches} launches"


def _how(summary: Summary) -> str:
    if summary.replicates is not None and summary.replicates.kind == "launch":
        return ": give --vllmperf-launches=3 or more"
    return (
        f': name it before it runs, by a parameter "workload" or @pytest.mark.vllm_workload("{summary.workload}")'
        if summary.kind == "load"
        else ""
    )


def proposed_level(entry: Metric, values: Sequence[float]) -> _Found | str:
    """The bound for a metric that has one value for each of several launches.

    ``values`` are finite, and at least two.
    """
    from scipy.special import stdtrit

    n, sign = len(values), 1 if entry.better is Better.LOWER else -1
    logs = min(values) > 0
    scaled = [math.log(v) for v in values] if logs else list(values)
    mean = math.fsum(scaled) / n
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in scaled) / (n - 1))
    chance = mean + sign * float(stdtrit(n - 1, 1 - ERROR)) * sd * math.sqrt(1 + 1 / n)
    worst = judged_by_worst(entry)
    level = (max(values) if sign > 0 else min(values)) if worst else (math.exp(mean) if logs else mean)
    farthest = (max if sign > 0 else min)(math.exp(chance) if logs else chance, level)
    bound = farthest * (1 + entry.tolerance) ** sign if logs else farthest + sign * entry.tolerance * abs(level)
    if entry.unit == "count":
        bound = math.ceil(bound - 1e-9) if sign > 0 else math.floor(bound + 1e-9)
    spread = sd if logs else (sd / abs(level) if level else None)
    shown = f"{format_quantity(level, unit=entry.unit)} over {n} launches"
    told = f"{shown}, sd {format_quantity(spread, unit='ratio', digits=2)}" if spread else shown
    if not math.isfinite(bound) or bound < 0 or (bound <= 0 and sign < 0):
        return f"{told}: so far apart that no limit would mean anything"
    if entry.unit == "ratio" and sign > 0 and bound >= 1:
        return f"{told}: the limit would be 100 %, which limits nothing"
    return _Found(level=level, spread=spread, bound=bound, told=told)


def _answers(summary: Summary, entry: Metric) -> _Found | str:
    """A floor of a share of right answers, by what these questions say about all of their kind."""
    measured = summary.metrics.get(entry.name)
    samples = measured.samples if measured is not None else ()
    if entry.unit != "ratio" or entry.better is not Better.HIGHER or len(samples) < 2 or min(samples) < 0:
        return "measured once, so there is no spread to propose a limit from"
    if all(sample in (0, 1) for sample in samples):
        from scipy.stats import binomtest

        interval = binomtest(int(sum(samples)), len(samples)).proportion_ci(1 - 2 * ANSWERS_ERROR, method="exact")
        low = float(interval.low)
    else:
        bounds = mean_bounds(samples, error_low=ANSWERS_ERROR, error_high=ANSWERS_ERROR)
        assert bounds is not None  # two samples at least
        low = bounds.low
    level = math.fsum(samples) / len(samples)
    told = f"{format_quantity(level, unit='ratio')} of {len(samples)} questions"
    if low <= 0.005:
        return f"{told}: too few questions, or too few right ones, for a floor"
    return _Found(level=level, spread=None, bound=low, told=told)


def _action(
    entry: Metric, existing: Limit | None, key: str, bound: float, level: float, *, force: bool
) -> tuple[Action, str]:
    now = None if existing is None else (existing.maximum if key == "max" else existing.minimum)
    shown = f"{'≤' if key == 'max' else '≥'} {format_quantity(bound, unit=entry.unit)}"
    if existing is None or now is None:
        return Action.ADDED, f"{shown} is new"
    tighter = bound < now if key == "max" else bound > now
    if tighter:
        return Action.TIGHTENED, f"{shown} instead of {existing.text} ({existing.where})"
    if math.isclose(bound, now, rel_tol=1e-9):
        return Action.KEPT, f"{existing.text} stays ({existing.where})"
    missed = level > now if key == "max" else level < now
    why = "which it misses" if missed else f"which is nearer than chance allows for ({shown})"
    if force:
        return Action.LOOSENED, f"{shown} instead of {existing.text} ({existing.where}), {why}"
    return Action.KEPT, f"{existing.text} stays ({existing.where}), {why}; --vllmperf-force would loosen it"


_STEPS = 200


def _as_written(bound: float, entry: Metric) -> tuple[str | int | float, float]:
    """The bound with three digits as it is written, never nearer to the level than ``bound``; and what it reads as."""
    sign = 1 if entry.better is Better.LOWER else -1
    if entry.unit == "count":
        return int(bound), float(int(bound))
    for step in range(_STEPS):
        text = format_quantity(bound * (1 + sign * step * 5e-4), unit=entry.unit)
        value = parse_quantity(text, unit=entry.unit)
        if (value - bound) * sign >= 0:
            break
    else:
        value = bound
        text = repr(bound)
    return (value if entry.unit in ("nat", "number") else text), value


def changes(proposals: Iterable[Proposal]) -> tuple[LimitChange, ...]:
    """What is to be written."""
    return tuple(p.change for p in proposals if p.change is not None)
