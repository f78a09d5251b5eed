"""Judging quality: right answers by an exact interval, a change by the same questions, a model by its KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_vllmperf.domain.levels import judge_level
from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.domain.quality_gate import judge_answers
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.thresholds import (
    Interval,
    Limit,
    Outcome,
    Subject,
    Thresholds,
    Verdict,
    judge,
    resolve,
    resolve_tolerance,
)
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["judge_quality"]


def judge_quality(thresholds: Thresholds, subject: Subject, summary: Summary, metrics: Sequence[str]) -> list[Verdict]:
    """Judge ``metrics`` of an evaluation, and where it was compared with a reference always that.

    ``accuracy`` against a floor by its exact interval: PASS when all of it is above, FAIL when all of it is below. A
    floor less than ten points above what no model at all scores proves nothing, and what meets it is INVALID.
    ``accuracy_change`` by the exact McNemar test within the tolerance of ``accuracy``. ``kl_mean`` against its
    limit, else against the task's ``broken_kl``: from there on the model is no variant of the reference.

    Raises:
        UnknownMetric: A name is not in the catalogue, or is a bare distribution.
        LimitTie: Two limits claim one value equally.
    """
    compared = [name for name in ("accuracy_change", "kl_mean") if name in summary.metrics]
    verdicts = []
    for name in dict.fromkeys((*metrics, *compared)):
        limit = resolve(thresholds, subject, name)
        if name == "accuracy_change" and limit is None:
            verdicts.append(_change(summary, resolve_tolerance(thresholds, subject, "accuracy")))
        elif name == "kl_mean" and limit is None and name in summary.metrics:
            verdicts.append(_divergence(summary))
        else:
            verdict = judge_level(summary, name, limit)
            verdicts.append(_floor_checked(verdict, summary) if name == "accuracy" else verdict)
    return verdicts


_ABOVE_NULL = 0.10
"""How far above the best null model a floor must be to say anything about a model."""


def _floor_checked(verdict: Verdict, summary: Summary) -> Verdict:
    """``verdict``, unless the floor would let a model pass that knows nothing."""
    scores, floor = summary.facts.get("null_scores"), verdict.limit.minimum if verdict.limit else None
    if floor is None or not isinstance(scores, dict) or not scores or verdict.outcome not in _MET:
        return verdict
    name, null = max(scores.items(), key=lambda item: float(item[1]))
    if floor >= null + _ABOVE_NULL:
        return verdict
    who = "blind choice" if name == "chance" else f"no model at all ({name})"
    reason = (
        f"a floor of {floor:.1%} proves nothing: {who} scores {null:.1%} on these questions, and a floor must be "
        f"{100 * _ABOVE_NULL:.0f} points above that ({null + _ABOVE_NULL:.1%}); raise it, or compare with a reference "
        "engine instead (reference = …, tolerance = …)"
    )
    return replace(verdict, outcome=Outcome.INVALID, reason=f"{reason}. Measured: {verdict.reason}")


_MET = (Outcome.PASS, Outcome.INCONCLUSIVE)


def _change(summary: Summary, tolerance: Limit) -> Verdict:
    verdict = judge(summary, "accuracy_change", None)
    changes = summary.metrics["accuracy_change"]
    reference = _reference(summary)
    points = f"within {100 * (tolerance.tolerance or 0):.3g} points of {reference}"
    limit = replace(tolerance, metric="accuracy_change", text=points)
    verdict = replace(verdict, limit=limit, built_in=True)
    if summary.invalid:
        return verdict
    if not changes.samples:
        outcome = Outcome.INCONCLUSIVE if tolerance.required else Outcome.NOT_JUDGED
        return replace(verdict, outcome=outcome, reason=f"not compared with {reference}: {changes.missing}")
    lost, gained = sum(x < 0 for x in changes.samples), sum(x > 0 for x in changes.samples)
    even = len(changes.samples) - lost - gained
    baseline = [True] * lost + [False] * gained + [True] * even
    candidate = [False] * lost + [True] * gained + [True] * even
    found = judge_answers(
        baseline, candidate, tolerance=tolerance.tolerance or 0.0, looks=Looks(at=(len(changes.samples),))
    )
    return replace(
        verdict,
        outcome=found.outcome,
        reason=f"accuracy against {reference}: {found.reason}",
        interval=Interval(low=found.low, high=None, confidence=None, n=found.n, replicate="question"),
    )


def _divergence(summary: Summary) -> Verdict:
    most = float(str(summary.facts.get("broken_kl", 0.2)))
    limit = Limit(
        metric="kl_mean",
        maximum=most,
        minimum=None,
        tolerance=None,
        required=False,
        where="built in (broken_kl of the task; set kl_mean in thresholds.toml to judge variants)",
        text=f"≤ {format_quantity(most, unit='nat')}",
    )
    measured = summary.metrics["kl_mean"]
    verdict = replace(judge(summary, "kl_mean", limit), built_in=True)
    if measured.value is None and not summary.invalid:
        return replace(verdict, outcome=Outcome.NOT_JUDGED, reason=f"KL mean not judged: {measured.missing}")
    return verdict


def _reference(summary: Summary) -> str:
    told = summary.facts.get("reference")
    return (
        str(told["engine"])
        if isinstance(told, dict) and "engine" in told
        else str(summary.facts.get("not_compared", "the reference"))
    )
