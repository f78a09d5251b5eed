"""Answers, scores and comparisons become the Summary of an evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.divergence import ReadText, perplexity
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.stored_answers import Comparison
from pytest_vllmperf.domain.summary import MetricValue, Summary, metric_values
from pytest_vllmperf.domain.validity import quality_rates, scores_by_filter

__all__ = ["Asked", "quality_summary"]

_NS = 1e-9
_FEW_QUESTIONS = 100
"""Below this a score moves by ten points and more by luck alone."""
_NEAR_NULL = 0.05
"""A score so little above that of no model at all is no evidence of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked of whom.

    Args:
        engine, model: Names.
        task: The task, with every length filled in.
        doc_ids: The questions.
        available: Questions there are.
        shots: Worked examples before each.
        compares: True where given answers' log-likelihoods were compared.
        facts: More facts about how it was asked.
        warnings: Doubts about how it was asked.
        null_scores: What models score that know nothing.
    """

    engine: str
    model: str
    task: QualityTask
    doc_ids: Sequence[int]
    available: int
    shots: int
    compares: bool
    facts: Mapping[str, object]
    warnings: Sequence[str]
    null_scores: Mapping[str, float]


def quality_summary(
    asked: Asked,
    answers: Sequence[Answer],
    scores: Sequence[Score],
    *,
    invalid: Sequence[str],
    read: Sequence[ReadText] = (),
    unread: str | None = None,
    comparison: Comparison | None = None,
) -> Summary:
    """Build the Summary.

    Args:
        asked: What was asked.
        answers: What came back, in order of question; empty where nothing was asked.
        scores: How every filter read it.
        invalid: Reasons why the score says nothing about the model.
        read: What the model made of given texts.
        unread: Why it read none.
        comparison: With a reference.
    """
    task = asked.task
    missing = None if answers else f"no question was asked: {invalid[0]}" if invalid else "no question was asked"
    invalid, found = _arbitrated(asked, tuple(invalid), comparison)
    return Summary(
        engine=asked.engine,
        workload=task.name,
        kind="quality",
        model=asked.model,
        description=f"{len(asked.doc_ids)} of {asked.available} questions, {asked.shots} shots, "
        + (f"log-likelihoods, {task.metric}" if asked.compares else f"filter {task.filter}"),
        requests=len(answers),
        completed=sum(a.succeeded for a in answers),
        failures=dict(sorted(Counter(str(a.outcome) for a in answers if not a.succeeded).items())),
        duration_s=_window_s(answers),
        metrics=_metrics(asked, answers, scores, read, comparison, missing=missing, unread=unread),
        invalid=invalid,
        warnings=(*_warnings(asked, scores, comparison), *found),
        facts=_facts(asked, answers, scores, read, comparison),
    )


def _arbitrated(
    asked: Asked, invalid: tuple[str, ...], comparison: Comparison | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who is to blame for an unreadable run: the measurement (INVALID), or the model (then its score stands).

    Returns:
        Reasons for INVALID, and what is told instead where the model is to blame.
    """
    divergence = comparison.divergence if comparison else None
    if not invalid or divergence is None or comparison is None:
        return invalid, ()
    apart = (
        f"on {len(divergence.kl_by_text)} given texts its next-token distributions are {divergence.kl_mean:.3g} nats a "
        f"token from {comparison.reference!r}, with the same likeliest token in {divergence.top1_agreement:.1%}"
    )
    if divergence.kl_mean >= asked.task.broken_kl:
        told = f"the model itself is broken, not the measurement: {apart}. No filter, stop string or template took part"
        return (), (told, *(f"its answers: {reason}" for reason in invalid))
    agree = f"the model is not to blame: {apart}. Look at how it is asked and read"
    return (*invalid, agree), ()


def _metrics(
    asked: Asked,
    answers: Sequence[Answer],
    scores: Sequence[Score],
    read: Sequence[ReadText],
    comparison: Comparison | None,
    *,
    missing: str | None,
    unread: str | None,
) -> dict[str, MetricValue]:
    """``accuracy`` and ``accuracy_change`` have one sample for each question, ``kl_mean`` one for each text."""
    values = tuple(s.value for s in scores if s.filter == asked.task.filter)
    metrics = {"accuracy": _mean("accuracy", values, missing or "no answer was scored")}
    rate = quality_rates(asked.task, answers, scores).error_rate
    metrics |= metric_values(distributions={}, scalars={"error_rate": rate}, missing={"error_rate": missing or ""})
    if comparison is not None:
        metrics["accuracy_change"] = _mean("accuracy_change", comparison.change, comparison.problem or missing or "")
        divergence = comparison.divergence
        why = unread or "no text was read by both"
        metrics["kl_mean"] = _mean(
            "kl_mean",
            divergence.kl_by_text if divergence else (),
            why,
            value=divergence.kl_mean if divergence else None,
        )
        metrics["top1_agreement"] = _mean(
            "top1_agreement",
            divergence.agreement_by_text if divergence else (),
            why,
            value=divergence.top1_agreement if divergence else None,
        )
    elif answers and (absent := _absent_reference(asked)) is not None:
        metrics["accuracy_change"] = _mean("accuracy_change", (), f"no answers of {absent!r} are stored")
    if read or unread:
        metrics |= metric_values(
            distributions={}, scalars={"perplexity": perplexity(read)}, missing={"perplexity": unread or ""}
        )
    return metrics


def _absent_reference(asked: Asked) -> str | None:
    """The engine these answers were to be compared with, where that is another one."""
    return asked.task.reference if asked.task.reference != asked.engine else None


def _mean(name: str, samples: Sequence[float], missing: str, *, value: float | None = None) -> MetricValue:
    mean = value if value is not None else (math.fsum(samples) / len(samples) if samples else None)
    return MetricValue(
        name=name, value=mean, n=len(samples), samples=tuple(samples), missing=None if samples else missing
    )


_SHOWN_OF_EACH = 3
_SHOWN_CHARS = 600


def _examples(task: QualityTask, answers: Sequence[Answer], scores: Sequence[Score]) -> list[dict[str, object]]:
    """A few answers as the gated filter read them, wrong ones first: a score is believed when they were read."""
    texts = {answer.doc_id: answer for answer in answers}
    gated = [score for score in scores if score.filter == task.filter and score.doc_id in texts]
    wrong = [score for score in gated if not score.value][:_SHOWN_OF_EACH]
    right = [score for score in gated if score.value][:_SHOWN_OF_EACH]
    return [
        {
            "doc_id": score.doc_id,
            "right": bool(score.value),
            "answer": (texts[score.doc_id].text or "")[-_SHOWN_CHARS:],
            "read_as": str(score.extracted)[:_SHOWN_CHARS],
            "expected": str(score.target)[:_SHOWN_CHARS],
            "finish_reason": texts[score.doc_id].finish_reason,
        }
        for score in (*wrong, *right)
    ]


def _facts(
    asked: Asked,
    answers: Sequence[Answer],
    scores: Sequence[Score],
    read: Sequence[ReadText],
    comparison: Comparison | None,
) -> dict[str, object]:
    task = asked.task
    latencies = [(a.ended_ns - a.dispatched_ns) * _NS for a in answers if a.succeeded]
    inputs = [a.input_tokens for a in answers if a.input_tokens is not None]
    outputs = [a.output_tokens for a in answers if a.output_tokens is not None]
    facts: dict[str, object] = {
        "lm_eval_task": task.lm_eval_task,
        "gated_filter": task.filter,
        "gated_metric": task.metric,
        "shots": asked.shots,
        "max_gen_toks": task.max_gen_toks,
        "seed": task.seed,
        "max_concurrency": task.max_concurrency,
        "questions_available": asked.available,
        "doc_ids": list(asked.doc_ids),
        "broken_kl": task.broken_kl,
        "filters": scores_by_filter(scores),
        "other_metrics": _other_metrics(task, scores),
        "null_scores": dict(asked.null_scores),
        "rates": asdict(quality_rates(task, answers, scores)),
        "examples": _examples(task, answers, scores),
        "thinking_chars_mean": _average([float(a.reasoning_chars) for a in answers if a.succeeded]),
        "answer_chars_mean": _average([float(len(a.text or "")) for a in answers if a.succeeded]),
        "input_tokens": sum(inputs) if inputs else None,
        "output_tokens": sum(outputs) if outputs else None,
        "latency_mean_s": _average(latencies),
        "texts_read": len(read),
        **asked.facts,
    }
    if comparison is None and (absent := _absent_reference(asked)) is not None:
        facts["not_compared"] = absent
    if comparison is not None:
        facts["reference"] = {
            "engine": comparison.reference,
            "started_at": comparison.started_at,
            "questions": len(comparison.change),
            "lost": comparison.lost,
            "gained": comparison.gained,
            "tokens_compared": comparison.divergence.tokens if comparison.divergence else 0,
        }
    return facts


def _other_metrics(task: QualityTask, scores: Sequence[Score]) -> dict[str, float]:
    """Every other metric of the gated filter; IFEval's by instruction count instructions, not prompts."""
    values: dict[str, list[float]] = {}
    for score in scores:
        if score.filter == task.filter:
            for name, found in score.others.items():
                values.setdefault(name, []).extend(found)
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def _warnings(asked: Asked, scores: Sequence[Score], comparison: Comparison | None) -> tuple[str, ...]:
    doubts = list(asked.warnings)
    count = len(asked.doc_ids)
    if count < _FEW_QUESTIONS:
        doubts.append(f"{count} questions leave a score uncertain by up to {1 / math.sqrt(count):.0%} either way")
    if asked.null_scores and scores:
        name, null = max(asked.null_scores.items(), key=lambda item: item[1])
        score = scores_by_filter(scores).get(asked.task.filter, 0.0)
        if null >= _NEAR_NULL and score < null + _NEAR_NULL:
            told = "choosing blindly" if name == "chance" else f"no model at all ({name})"
            doubts.append(f"{score:.1%} is no better than {told}, which scores {null:.1%} on these questions")
    if comparison is not None and comparison.problem:
        doubts.append(f"not compared with {comparison.reference!r} of {comparison.started_at}: {comparison.problem}")
    elif comparison is not None and len(comparison.change) < comparison.of:
        doubts.append(
            f"{len(comparison.change)} of {comparison.of} questions were asked of {comparison.reference!r} as well; "
            "accuracy_change is over those"
        )
    if comparison is not None and comparison.doubt and not comparison.problem:
        doubts.append(comparison.doubt)
    return tuple(doubts)


def _average(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def _window_s(answers: Sequence[Answer]) -> float:
    """Seconds from the first request to the last answer."""
    if not answers:
        return 0.0
    return (max(a.ended_ns for a in answers) - min(a.dispatched_ns for a in answers)) * _NS
