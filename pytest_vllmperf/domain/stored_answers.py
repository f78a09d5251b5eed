"""A finished evaluation as it is kept, so that others can be compared with it on the same questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.divergence import Divergence, ReadText, diverge
from pytest_vllmperf.domain.quality import QualityTask

__all__ = ["Comparison", "StoredAnswers", "compare", "question_key", "settings_key"]

SCHEMA = 1

_SETTINGS = (
    *("lm_eval_task", "filter", "metric", "max_gen_toks", "stop", "api", "sampling", "chat_template_kwargs"),
    *("answer_pattern", "prompt", "oracle"),
)
"""What decides how a question is asked and scored; everything else may differ between two evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswers:
    """One evaluation.

    Args:
        schema: Version of this format.
        engine, model, task: Names.
        settings: :func:`settings_key` of the task.
        started_at: ISO 8601, UTC.
        questions: :func:`question_key` of each question, in order.
        answers: The answers, in order.
        scores: Every filter's reading.
        right: The gated metric, by question, in order.
        read: What the model made of given right answers.
        max_concurrency: Requests in flight at most; None in files of earlier versions.
    """

    schema: int
    engine: str
    model: str
    task: str
    settings: str
    started_at: str
    questions: tuple[str, ...]
    answers: tuple[Answer, ...]
    scores: tuple[Score, ...]
    right: tuple[float, ...]
    read: tuple[ReadText, ...]
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One evaluation against a reference's.

    Args:
        reference: Name of the reference engine.
        started_at: When the reference was evaluated.
        change: By common question, candidate's value − reference's.
        of: Questions the candidate was asked.
        divergence: On given texts; None where they have none in common.
        problem: Why the answers cannot be compared; None when they can.
        doubt: What else but the engines differs, where something does.
    """

    reference: str
    started_at: str
    change: tuple[float, ...]
    of: int
    divergence: Divergence | None
    problem: str | None
    doubt: str | None = None

    @property
    def lost(self) -> int:
        """Questions only the reference answered right."""
        return sum(value < 0 for value in self.change)

    @property
    def gained(self) -> int:
        """Questions only the candidate answered right."""
        return sum(value > 0 for value in self.change)


def question_key(prompt: object) -> str:
    """Equal for equal prompts, as they are sent."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()[:16]


def settings_key(task: QualityTask, shots: int) -> str:
    """Equal for tasks that ask and score alike."""
    settings: dict[str, object] = {name: getattr(task, name) for name in _SETTINGS}
    for name in ("sampling", "chat_template_kwargs"):
        settings[name] = dict(getattr(task, name))
    return question_key({**settings, "shots": shots})


def compare(candidate: StoredAnswers, reference: StoredAnswers) -> Comparison:
    """Pair the questions both were asked, by their text, whatever the order."""
    theirs: Mapping[str, float] = dict(zip(reference.questions, reference.right, strict=True))
    pairs: Sequence[float] = [
        ours - theirs[key] for key, ours in zip(candidate.questions, candidate.right, strict=True) if key in theirs
    ]
    problem = None
    if candidate.settings != reference.settings:
        pairs, problem = [], "the task was asked or scored in another way then (shots, filter, sampling, lengths)"
    elif not pairs:
        problem = "no question was asked of both"
    return Comparison(
        reference=reference.engine,
        started_at=reference.started_at,
        change=tuple(pairs),
        of=len(candidate.questions),
        divergence=diverge(reference.read, candidate.read),
        problem=problem,
        doubt=_doubt(candidate, reference),
    )


def _doubt(candidate: StoredAnswers, reference: StoredAnswers) -> str | None:
    ours, theirs = candidate.max_concurrency, reference.max_concurrency
    if None in (ours, theirs) or ours == theirs:
        return None
    return (
        f"asked at max_concurrency = {ours}, and {reference.engine!r} at {theirs}: greedy answers depend on what is "
        "batched together, so ask both alike"
    )
