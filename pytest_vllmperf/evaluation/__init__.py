"""One quality evaluation: load the task, prove that it can be read, ask the engine, score, check validity, compare."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.stored_answers import Comparison, StoredAnswers, compare, question_key, settings_key
from pytest_vllmperf.evaluation.questions import check_task

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.lm_eval_runner import LoadedTask
    from pytest_vllmperf.adapters.recording_model import Asking, RecordingModel, Target
    from pytest_vllmperf.domain.divergence import ReadText
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.summary import Summary

__all__ = ["Evaluation", "check_task", "evaluate", "evaluate_recorded"]

Progress = Callable[[int, int], None]

_NS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A Summary together with everything it was computed from, in order of question; ``stored`` is how it is kept."""

    summary: Summary
    answers: tuple[Answer, ...]
    scores: tuple[Score, ...]
    stored: StoredAnswers | None


def evaluate(
    engine: EngineHandle,
    task: QualityTask,
    *,
    data: Path | None = None,
    store: Path | None = None,
    reference: StoredAnswers | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Let a live engine answer ``task`` and score it: ``accuracy``, or the reasons why there is none.

    A score is a claim about the measurement first. Requests that fail, answers that are empty, cut, repeated or
    unreadable, filters that contradict each other, prompts that did not arrive whole: each goes into ``invalid``
    with its rate, examples, likely cause and fix, and the score then says nothing about the model. Where a
    reference shows that the model itself is far off on given texts, the score stands, and the model fails by it.

    Args:
        engine: Where the questions go: by chat, or by completions where the task compares log-likelihoods.
        task: What is asked.
        data: Directory of offline data, with one directory for each task; None takes them from the hub.
        store: Directory where answers are kept, and references looked for; None keeps nothing.
        reference: What to compare with, in place of the latest stored answers of ``task.reference``.
        progress: Called with (answers so far, questions) after each answer.

    Raises:
        TaskError: The task cannot be asked: unknown, its data malformed, more questions than there are.
        TaskUnavailable: Its data, or the log-likelihoods it needs, cannot be had here.
    """
    return evaluate_recorded(engine, task, data=data, store=store, reference=reference, progress=progress).summary


def evaluate_recorded(
    engine: EngineHandle,
    task: QualityTask,
    *,
    data: Path | None = None,
    store: Path | None = None,
    reference: StoredAnswers | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """As :func:`evaluate`, with each answer and how each filter read it."""
    from pytest_vllmperf.domain.quality_report import quality_summary
    from pytest_vllmperf.domain.validity import invalid_reasons
    from pytest_vllmperf.evaluation.preparing import prepare
    from pytest_vllmperf.evaluation.repeating import asked_again, repeat_facts
    from pytest_vllmperf.watch import Life

    started_at = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    began = time.monotonic_ns()
    with Life(engine) as life:
        ready = prepare(engine, task, data, life.verdict)
        prepared_s = (time.monotonic_ns() - began) * _NS
        loaded, doc_ids = ready.loaded, ready.doc_ids
        answers: tuple[Answer, ...] = ()
        scores: tuple[Score, ...] = ()
        reasons = list(ready.unreadable)
        read: Sequence[ReadText] = ()
        unread, model, repeats = None, None, None
        if not ready.unreadable:
            model, scores = _ask(loaded, ready.target, ready.asking, doc_ids, progress)
            answers = tuple(model.answers)
            reasons = [*ready.doubtful, *_arrived(model, ready.target, ready.asking)]
            reasons += invalid_reasons(loaded.task, doc_ids, answers, scores, compares=loaded.compares)
            read, unread = _read(loaded, ready.target, ready.asking, doc_ids)
            repeats = None if reasons else asked_again(ready, model, scores)
    if died := life.verdict():
        reasons.insert(0, died)
    stored = _stored(engine, loaded, started_at, model, doc_ids, answers, scores, read)
    against = _reference(loaded.task, stored, reference, store)
    summary = quality_summary(
        ready.asked(
            engine,
            prepared_s,
            facts=repeat_facts(engine, loaded.task, repeats),
            doubts=(_without_reference(engine, loaded.task, against), repeats.doubt if repeats else None),
        ),
        answers,
        scores,
        invalid=reasons,
        read=read,
        unread=unread,
        comparison=against,
    )
    if store is not None and stored is not None and not summary.invalid:
        from pytest_vllmperf.adapters.answer_store import keep_answers

        keep_answers(store, stored)
    return Evaluation(summary=summary, answers=answers, scores=scores, stored=stored)


def _ask(
    loaded: LoadedTask, target: Target, asking: Asking, doc_ids: Sequence[int], progress: Progress | None
) -> tuple[RecordingModel, tuple[Score, ...]]:
    from pytest_vllmperf.adapters.lm_eval_runner import score
    from pytest_vllmperf.adapters.recording_model import RecordingModel

    model = RecordingModel(
        target=target, asking=asking, number=loaded.numbering(doc_ids), stop=loaded.task.stop, progress=progress
    )
    return model, score(loaded, model, doc_ids)


_CHECKED = 4
"""Prompts counted of the longest ones, and of the others: a cut hits the longest first."""


def _arrived(model: RecordingModel, target: Target, asking: Asking) -> list[str]:
    """Whether prompts arrived whole: the server's count of tokens against its own tokenizer's."""
    from pytest_vllmperf.adapters.recording_model import prompt_tokens
    from pytest_vllmperf.domain.preflight import prompt_tokens_reason

    told = {a.doc_id: a.input_tokens for a in model.answers if a.input_tokens is not None and a.doc_id in model.prompts}
    by_length = sorted(told, key=lambda doc_id: len(str(model.prompts[doc_id])))
    chosen = dict.fromkeys((*by_length[-_CHECKED:], *by_length[:_CHECKED]))
    whole = prompt_tokens(target, asking, {doc_id: model.prompts[doc_id] for doc_id in chosen}) if chosen else {}
    reason = prompt_tokens_reason({doc_id: (count, told[doc_id]) for doc_id, count in whole.items()})
    return [] if reason is None else [reason]


def _read(
    loaded: LoadedTask, target: Target, asking: Asking, doc_ids: Sequence[int]
) -> tuple[Sequence[ReadText], str | None]:
    """What the model makes of right answers; none where the task has none, or wants none."""
    from pytest_vllmperf.adapters.lm_eval_runner import worked_texts
    from pytest_vllmperf.adapters.recording_model import read_texts

    texts = worked_texts(loaded, doc_ids[: loaded.task.kl_texts])
    if not texts:
        return (), None
    chat = loaded.task.api == "chat" and not loaded.compares
    found, why = read_texts(
        target,
        asking,
        [
            ([{"role": "user", "content": question}], answer) if chat else (f"{question} ", answer)
            for question, answer in texts
        ],
    )
    return found, None if found else why


def _stored(
    engine: EngineHandle,
    loaded: LoadedTask,
    started_at: str,
    model: RecordingModel | None,
    doc_ids: Sequence[int],
    answers: tuple[Answer, ...],
    scores: tuple[Score, ...],
    read: Sequence[ReadText],
) -> StoredAnswers | None:
    from pytest_vllmperf.domain.stored_answers import SCHEMA

    gated = {s.doc_id: s.value for s in scores if s.filter == loaded.task.filter}
    if model is None or set(gated) != set(doc_ids) or len(answers) != len(doc_ids):
        return None
    documents = {doc_id: loaded.document(doc_id) for doc_id in doc_ids}
    return StoredAnswers(
        schema=SCHEMA,
        engine=engine.name,
        model=engine.model_name,
        task=loaded.task.name,
        settings=settings_key(loaded.task, loaded.shots),
        started_at=started_at,
        questions=tuple(question_key(str(inner.doc_to_text(doc))) for inner, doc in documents.values()),
        answers=answers,
        scores=scores,
        right=tuple(gated[doc_id] for doc_id in doc_ids),
        read=tuple(read),
        max_concurrency=loaded.task.max_concurrency,
    )


def _reference(
    task: QualityTask, stored: StoredAnswers | None, given: StoredAnswers | None, store: Path | None
) -> Comparison | None:
    if stored is None or (given is None and task.reference in (None, stored.engine)):
        return None
    if given is None and store is not None:
        from pytest_vllmperf.adapters.answer_store import latest_answers

        given = latest_answers(store, engine=str(task.reference), task=task.name)
    return None if given is None else compare(stored, given)


def _without_reference(engine: EngineHandle, task: QualityTask, against: Comparison | None) -> str | None:
    if against is not None or task.reference in (None, engine.name):
        return None
    return (
        f"not compared with {task.reference!r}: no answers of it are stored; evaluate that engine first (earlier in "
        "the matrix, or in an earlier run). With pytest-xdist's workers both are evaluated at once: answers are kept, "
        "so run again, or without -n"
    )
