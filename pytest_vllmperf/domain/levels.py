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

__all__ = ["judge_level", "undecided"]


def judge_level(summary: Summary, metric: str, limit: Limit | None, *, launches: int = 1) -> Verdict:
    """Judge one metric of one measurement against an absolute limit, as surely as its replicates allow.

    - Answers: by the exact binomial bounds of the share of right ones; INCONCLUSIVE where they straddle the floor.
    - Several launches: by Student's t bounds over launches, at the looks of ``launches``.
    - Several rounds of one launch: likewise, at one look. What differs from launch to launch is not covered.
    - Anything else, and whatever has too few samples in one replicate: by the value alone.

    Raises:
        UnknownMetric: ``metric`` is not in the catalogue, or is a bare distribution.
    """
    entry = judgeable_metric(metric)
    verdict = judge(summary, metric, limit)
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
