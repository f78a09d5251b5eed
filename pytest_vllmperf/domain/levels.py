"""Limits on a level: the value of one run, an interval over its rounds or launches, or the exact bounds of a share."""

from __future__ import annotations

from dataclasses import replace

from pytest_vllmperf.domain.bounds import mean_bounds
from pytest_vllmperf.domain.intervals import judge_absolute
from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.domain.metrics import Better, judgeable_metric
from pytest_vllmperf.domain.quality_gate import FLOOR_ERROR, judge_floor
from pytest_vllmperf.domain.summary import Replicates, Summary
from pytest_vllmperf.domain.thresholds import Interval, Limit, Outcome, Verdict, judge
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["judge_level", "undecided"]


def judge_level(summary: Summary, metric: str, limit: Limit | None, *, launches: int = 1) -> Verdict:
    """Judge one metric of one measurement against an absolute limit, as surely as its replicates allow.

    - A capacity: by the interval its search ended with, which may have no upper end.
    - Answers: by the exact binomial bounds of the share of right ones; INCONCLUSIVE where they straddle the floor.
    - Several launches: by Student's t bounds over launches, at the looks of ``launches``.
    - Several rounds of one launch: likewise, at one look. What differs from launch to launch is not covered.
    - Anything else, and whatever has too few samples in one replicate: by the value alone.

    Raises:
        UnknownMetric: ``metric`` is not in the catalogue, or is a bare distribution.
    """
    entry = judgeable_metric(metric)
    verdict = judge(summary, metric, limit)
    if summary.kind == "capacity":
        asked = limit is not None and limit.minimum is not None and not summary.invalid and metric == _SEARCHED
        return _by_search(summary, verdict, limit) if asked and limit is not None else verdict
    if summary.kind == "quality":
        asked = limit is not None and verdict.outcome in (Outcome.PASS, Outcome.FAIL)
        return _by_answers(summary, verdict, limit) if asked and limit is not None else verdict
    replicates = summary.replicates
    verdict = replace(verdict, launches=replicates.count if replicates and replicates.kind == "launch" else 1)
    if replicates is None or limit is None or verdict.outcome not in (Outcome.PASS, Outcome.FAIL):
        return verdict
    if metric not in replicates.values or replicates.samples[metric] < entry.minimum_samples:
        return verdict
    return _by_replicates(verdict, limit, replicates, launches=launches)


_SEARCHED = "capacity_rps"
_SEARCH_CONFIDENCE = 0.975
"""Of each end of a 95 % interval."""


def undecided(verdict: Verdict, *, launches: int) -> bool:
    """True when another launch, of ``launches`` at most, may still decide."""
    return verdict.outcome is Outcome.INCONCLUSIVE and verdict.launches is not None and verdict.launches < launches


def _by_replicates(verdict: Verdict, limit: Limit, replicates: Replicates, *, launches: int) -> Verdict:
    metric, rounds = verdict.metric, replicates.kind == "round"
    found = judge_absolute(
        replicates.values[metric],
        limit,
        samples=replicates.samples[metric],
        replicate=replicates.kind,
        budget=replicates.count if rounds else max(launches, replicates.count),
        looks=Looks(at=(replicates.count,)) if rounds else None,
    )
    interval = (
        None
        if found.low is None
        else Interval(low=found.low, high=found.high, confidence=found.confidence, n=found.n, replicate=replicates.kind)
    )
    return replace(verdict, outcome=found.outcome, reason=found.reason, value=found.value, interval=interval)


def _by_search(summary: Summary, verdict: Verdict, limit: Limit) -> Verdict:
    """A floor of a capacity. A search that never met the upper side of its bracket still knows a lower bound."""
    low, high = (_number(summary.facts.get(f"{_SEARCHED}_{end}")) for end in ("low", "high"))
    floor, label = limit.minimum, judgeable_metric(_SEARCHED).label
    assert floor is not None  # judge_level asks for it
    ends = [format_quantity(end, unit="req/s") if end is not None else "…" for end in (low, high)]
    shown = f"{label} {format_quantity(verdict.value, unit='req/s')} [{ends[0]}, {ends[1]}]"
    if low is not None and low >= floor:
        outcome, reason = Outcome.PASS, f"{shown} meets {limit.text}"
    elif high is not None and high < floor:
        outcome, reason = Outcome.FAIL, f"{shown} falls below {limit.text}"
    else:
        outcome = Outcome.INCONCLUSIVE
        reason = f"{shown} does not tell on which side of {limit.text} the engine is; give each probe more requests"
    probes = summary.facts.get("probes")
    interval = Interval(
        low=low,
        high=high,
        confidence=_SEARCH_CONFIDENCE,
        n=probes if isinstance(probes, int) else 0,
        replicate="probe",
    )
    return replace(verdict, outcome=outcome, reason=reason, interval=interval, launches=1)


def _number(fact: object) -> float | None:
    return float(fact) if isinstance(fact, (int, float)) else None


def _by_answers(summary: Summary, verdict: Verdict, limit: Limit) -> Verdict:
    """A floor of a share of questions; other ratios of an evaluation (failed requests) keep their plain verdict."""
    measured, floor = summary.metrics[verdict.metric], limit.minimum
    entry = judgeable_metric(verdict.metric)
    if floor is None or entry.better is not Better.HIGHER or entry.unit != "ratio" or len(measured.samples) < 2:
        return verdict
    samples = measured.samples
    if all(sample in (0, 1) for sample in samples):
        found = judge_floor(int(sum(samples)), len(samples), floor)
        low, high, outcome, reason = found.low, found.high, found.outcome, f"{entry.label} {found.reason}"
    else:
        low, high, outcome, reason = _by_scores(samples, floor, entry.label)
    interval = Interval(low=low, high=high, confidence=1 - FLOOR_ERROR, n=len(samples), replicate="question")
    return replace(verdict, outcome=outcome, reason=reason, interval=interval)


def _by_scores(samples: tuple[float, ...], floor: float, label: str) -> tuple[float, float, Outcome, str]:
    """Scores between wrong and right: Student's t bounds of their mean over questions."""
    bounds = mean_bounds(samples, error_low=FLOOR_ERROR, error_high=FLOOR_ERROR)
    assert bounds is not None  # two samples at least
    shown = f"{label} {bounds.mean:.1%} [{bounds.low:.1%}, {bounds.high:.1%}] of {len(samples)} questions"
    if bounds.low >= floor:
        return bounds.low, bounds.high, Outcome.PASS, f"{shown} meets ≥ {floor:.1%}"
    if bounds.high < floor:
        return bounds.low, bounds.high, Outcome.FAIL, f"{shown} misses ≥ {floor:.1%}"
    why = f"does not tell on which side of {floor:.1%} the model is; ask more questions"
    return bounds.low, bounds.high, Outcome.INCONCLUSIVE, f"{shown} {why}"
