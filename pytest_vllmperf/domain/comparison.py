"""Candidate against baseline: each metric's gate over the pairs launched so far, and the answer in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.domain.metrics import Better, Metric, judgeable_metric
from pytest_vllmperf.domain.paired import PAIR_LOOKS, PairedVerdict, judge_pairs, signed_percent
from pytest_vllmperf.domain.quality_gate import QUESTION_LOOKS, judge_answers
from pytest_vllmperf.domain.thresholds import Interval, Limit, Outcome, Verdict
from pytest_vllmperf.domain.units import format_quantity
from pytest_vllmperf.errors import ConfigError

__all__ = [
    "COMPARED",
    "Judged",
    "Sides",
    "conclusion",
    "confirmed",
    "judge_questions",
    "judge_replicates",
    "question_looks",
    "shown_change",
]

COMPARED = {
    "load": ("output_throughput", "ttft_mean", "tpot_mean"),
    "quality": ("accuracy",),
    "startup": ("time_to_ready",),
}
"""What is compared where a test does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Whom a comparison compares, and on what."""

    baseline: str
    candidate: str
    workload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A verdict so far, and the pairs to have before judging again (None when it is final)."""

    verdict: Verdict
    next_look: int | None


def judge_replicates(
    sides: Sides,
    limit: Limit,
    baseline: Sequence[float | None],
    candidate: Sequence[float | None],
    *,
    looks: Looks = PAIR_LOOKS,
    samples: int = 1,
) -> Judged:
    """Judge one metric by the values of the launches so far, in order of pairs.

    Counts and shares (failed requests, preemptions, hit rates) have no ratio: there the worst launch of each side is
    compared, at the last look. Everything else goes through :func:`~pytest_vllmperf.domain.paired.judge_pairs`.

    Args:
        sides: Who is compared.
        limit: The metric, and by how much the candidate may be worse.
        baseline: Its values; None where a launch has none.
        candidate: Likewise.
        looks: Pairs after which to judge.
        samples: The smallest number of samples behind one value.

    Raises:
        UnknownMetric: The limit's metric is not in the catalogue, or is a bare distribution.
    """
    entry, tolerance = judgeable_metric(limit.metric), limit.tolerance or 0.0
    n = min(len(baseline), len(candidate))
    if samples < entry.minimum_samples and None not in (*baseline, *candidate):
        few = f"{entry.label} not judged, n = {samples} a launch ({entry.statistic} needs {entry.minimum_samples})"
        outcome = Outcome.INCONCLUSIVE if limit.required else Outcome.NOT_JUDGED
        return Judged(verdict=_verdict(sides, limit, outcome, few, n=n), next_look=None)
    if entry.unit in ("count", "ratio"):
        return _by_worst(sides, limit, entry, baseline, candidate, looks)
    found = judge_pairs(baseline, candidate, better=entry.better, tolerance=tolerance, looks=looks)
    return Judged(verdict=_of_pairs(sides, limit, entry, found, baseline, candidate), next_look=found.next_look)


def _of_pairs(
    sides: Sides,
    limit: Limit,
    entry: Metric,
    found: PairedVerdict,
    baseline: Sequence[float | None],
    candidate: Sequence[float | None],
) -> Verdict:
    reason = found.reason if found.outcome is Outcome.INVALID else f"{entry.label} {found.reason}"
    interval = (
        None
        if found.low is None
        else Interval(low=found.low, high=found.high, confidence=found.confidence, n=found.n, replicate="pair")
    )
    return replace(
        _verdict(sides, limit, found.outcome, reason, n=found.n),
        value=_level(candidate),
        baseline=_level(baseline),
        change=found.change,
        interval=interval,
    )


def _verdict(sides: Sides, limit: Limit, outcome: Outcome, reason: str, *, n: int) -> Verdict:
    return Verdict(
        outcome=outcome,
        engine=sides.candidate,
        workload=sides.workload,
        metric=limit.metric,
        value=None,
        n=n,
        limit=limit,
        reason=reason,
        against=sides.baseline,
    )


def _level(values: Sequence[float | None]) -> float | None:
    """Geometric mean, as the change is one of logarithms; None where a value is missing or not above 0."""
    known = [v for v in values if v is not None and math.isfinite(v) and v > 0]
    return math.exp(math.fsum(map(math.log, known)) / len(known)) if known and len(known) == len(values) else None


def _by_worst(
    sides: Sides,
    limit: Limit,
    entry: Metric,
    baseline: Sequence[float | None],
    candidate: Sequence[float | None],
    looks: Looks,
) -> Judged:
    n = min(len(baseline), len(candidate))
    known = [[v for v in side if v is not None and math.isfinite(v)] for side in (baseline, candidate)]
    if not n or any(len(found) < n for found in known):
        reason = f"{entry.label} has no value in {2 * n - sum(map(len, known))} of {2 * n} launches"
        return Judged(verdict=_verdict(sides, limit, Outcome.INVALID, reason, n=n), next_look=None)
    pick = min if entry.better is Better.HIGHER else max
    before, after = pick(known[0]), pick(known[1])
    worse = before - after if entry.better is Better.HIGHER else after - before
    told = " and ".join(format_quantity(x, unit=entry.unit) for x in (before, after))
    if entry.better is Better.NEITHER:
        outcome, why = Outcome.NOT_JUDGED, "neither direction is better; shown only"
    elif n < looks.at[0]:
        outcome, why = Outcome.INCONCLUSIVE, f"{looks.at[0] - n} more pairs needed"
    elif worse > (limit.tolerance or 0.0) * (abs(before) if entry.unit == "count" else 1.0):
        outcome, why = Outcome.FAIL, f"worse by more than {limit.text}"
    else:
        outcome, why = Outcome.PASS, "not worse" if worse <= 0 else f"worse, {limit.text}"
    reason = f"{entry.label}, the worst of {n} launches each, {told}: {why}"
    verdict = replace(_verdict(sides, limit, outcome, reason, n=n), value=after, baseline=before)
    if entry.unit == "ratio":
        verdict = replace(verdict, change=after - before)
    return Judged(verdict=verdict, next_look=looks.following(n) if outcome is Outcome.INCONCLUSIVE else None)


def question_looks(questions: int) -> Looks:
    """After how many questions a comparison of answers looks, when ``questions`` can be asked."""
    return QUESTION_LOOKS.within(questions)


def judge_questions(
    sides: Sides, limit: Limit, baseline: Sequence[float], candidate: Sequence[float], *, looks: Looks
) -> Judged:
    """Judge answers to the same questions: exact paired McNemar, see ``domain/quality_gate.py``.

    ``next_look`` counts questions.

    Raises:
        ConfigError: An answer is neither right (1) nor wrong (0).
    """
    entry = judgeable_metric(limit.metric)
    for side in (baseline, candidate):
        odd = next((x for x in side if x not in (0, 1)), None)
        if odd is not None:
            raise ConfigError(
                f"{sides.workload}: an answer scores {odd:g}; paired answers are right (1) or wrong (0): compare a "
                "task whose filter gives one of them"
            )
    found = judge_answers(
        [x == 1 for x in baseline], [x == 1 for x in candidate], tolerance=limit.tolerance or 0.0, looks=looks
    )
    verdict = replace(
        _verdict(sides, limit, found.outcome, f"{entry.label} {found.reason}", n=found.n),
        value=sum(candidate) / len(candidate) if candidate else None,
        baseline=sum(baseline) / len(baseline) if baseline else None,
        change=found.change,
        interval=Interval(low=found.low, high=None, confidence=None, n=found.n, replicate="question"),
    )
    return Judged(verdict=verdict, next_look=found.next_look)


def confirmed(first: Verdict, repeated: Verdict) -> Verdict:
    """What stands after a FAIL was repeated once with fresh launches: the repetition's outcome.

    Raises:
        ConfigError: ``first`` is no FAIL.
    """
    if first.outcome is not Outcome.FAIL:
        raise ConfigError(f"only a FAIL is repeated to confirm it, not {first.outcome}")
    told = "confirmed" if repeated.outcome is Outcome.FAIL else "not confirmed"
    return replace(repeated, reason=f"FAIL {told} by fresh launches: {repeated.reason} (first: {first.reason})")


def shown_change(verdict: Verdict) -> str:
    """The change for tables: ``-29 % [-31 %, -27 %]``, ``-1.5 points [≥ -2.9]``; empty where there is none."""
    if verdict.change is None:
        return ""
    interval = verdict.interval
    if judgeable_metric(verdict.metric).unit == "ratio":
        low = "" if interval is None or interval.low is None else f" [≥ {100 * interval.low:+.1f}]"
        return f"{100 * verdict.change:+.1f} points{low}"
    if interval is None or interval.low is None or interval.high is None:
        return signed_percent(verdict.change)
    return f"{signed_percent(verdict.change)} [{signed_percent(interval.low)}, {signed_percent(interval.high)}]"


def conclusion(verdicts: Sequence[Verdict]) -> str:
    """The plain sentence about one comparison: the worst news first, then every change by workload."""
    mine = [v for v in verdicts if not v.built_in]
    told = [v for v in mine if v.change is not None]
    by_workload = {w: [v for v in told if v.workload == w] for w in dict.fromkeys(v.workload for v in told)}
    parts = [f"{w}: {', '.join(map(_told, group))}" for w, group in by_workload.items()]
    overall = _overall(mine)
    return f"{overall[0].upper()}{overall[1:]}" + (f" ({'; '.join(parts)})" if parts else "")


def _told(verdict: Verdict) -> str:
    return f"{judgeable_metric(verdict.metric).label} {shown_change(verdict)}"


def _overall(verdicts: Sequence[Verdict]) -> str:
    outcomes = {v.outcome for v in verdicts}
    failed = [f"{judgeable_metric(v.metric).label} at {v.workload}" for v in verdicts if v.outcome is Outcome.FAIL]
    if failed:
        better = [v for v in verdicts if _improved(v)]
        gains = [f"{judgeable_metric(v.metric).label} at {v.workload}" for v in better]
        return f"worse in {', '.join(failed)}" + (f", better in {', '.join(gains)}" if gains else "")
    if Outcome.INVALID in outcomes:
        return "not judged: a measurement is broken"
    if Outcome.INCONCLUSIVE in outcomes or not outcomes - {Outcome.NOT_JUDGED}:
        return "not shown to be worse, and not shown to be as good: too little evidence"
    gains = [f"{judgeable_metric(v.metric).label} at {v.workload}" for v in verdicts if _improved(v)]
    return f"better in {', '.join(gains)}, and not worse elsewhere" if gains else "not worse within the tolerances"


def _improved(verdict: Verdict) -> bool:
    """True when the whole interval of the change lies on the better side."""
    interval, better = verdict.interval, judgeable_metric(verdict.metric).better
    if interval is None or interval.low is None:
        return False
    if better is Better.HIGHER:
        return interval.low > 0
    return better is Better.LOWER and interval.high is not None and interval.high < 0
