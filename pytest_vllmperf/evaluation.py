"""One quality evaluation: load the task, prove that it can be read, ask the engine, score, check validity."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.quality import BUILT_IN_TASKS, Answer, QualityTask, Score, draw_questions, task_with_options
from pytest_vllmperf.domain.summary import MetricValue, Summary, metric_values
from pytest_vllmperf.domain.validity import invalid_reasons, oracle_reason, quality_rates, scores_by_filter
from pytest_vllmperf.errors import TaskError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.lm_eval_runner import LoadedTask
    from pytest_vllmperf.domain.engine import EngineHandle

__all__ = ["BUILT_IN_TASKS", "Evaluation", "QualityTask", "evaluate", "evaluate_recorded", "task_with_options"]

Progress = Callable[[int, int], None]

_NS = 1e-9
_FEW_QUESTIONS = 100
"""Below this a score moves by ten points and more by luck alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A Summary together with everything it was computed from, in order of question."""

    summary: Summary
    answers: tuple[Answer, ...]
    scores: tuple[Score, ...]


def evaluate(engine: EngineHandle, task: QualityTask, *, progress: Progress | None = None) -> Summary:
    """Let a live engine answer ``task`` and score it: ``accuracy``, or the reasons why there is none.

    A score is a claim about the measurement first. Requests that fail, answers that are empty, cut or unreadable,
    filters that contradict each other: each goes into ``invalid`` with its rate, examples, likely cause and fix,
    and the score then says nothing about the model.

    Args:
        engine: Where the questions go, by ``/v1/chat/completions`` at temperature 0.
        task: What is asked.
        progress: Called with (answers so far, questions) after each answer.

    Raises:
        TaskError: The task cannot be asked: unknown, its data not to be had, more questions than there are.
    """
    return evaluate_recorded(engine, task, progress=progress).summary


def evaluate_recorded(engine: EngineHandle, task: QualityTask, *, progress: Progress | None = None) -> Evaluation:
    """As :func:`evaluate`, with each answer and how each filter read it (for paired comparisons)."""
    from pytest_vllmperf.adapters import lm_eval_runner
    from pytest_vllmperf.adapters.question_files import read_questions

    began = time.monotonic_ns()
    data = _data_path(engine, task)
    fields = ("question", "answer") if task.lm_eval_task is None else ()
    rows = None if data is None else read_questions(data, fields=fields)
    loaded = lm_eval_runner.load_task(task, rows)
    try:
        doc_ids = draw_questions(loaded.size, task.questions, task.seed)
    except TaskError as error:
        raise TaskError(f"quality task {task.name!r}: {error}") from None
    unreadable = _preflight(loaded, doc_ids)
    prepared_s = (time.monotonic_ns() - began) * _NS
    answers, scores = ((), ()) if unreadable else _ask(engine, loaded, doc_ids, progress)
    reasons = (unreadable,) if unreadable else invalid_reasons(task, doc_ids, answers, scores)
    doubts = _warnings(
        task, len(doc_ids), examples_from_test=rows is not None and "train" not in rows and loaded.shots > 0
    )
    summary = Summary(
        engine=engine.name,
        workload=task.name,
        kind="quality",
        model=engine.model_name,
        description=f"{len(doc_ids)} of {loaded.size} questions, {loaded.shots} shots, filter {task.filter}",
        requests=len(answers),
        completed=sum(a.succeeded for a in answers),
        failures=dict(sorted(Counter(str(a.outcome) for a in answers if not a.succeeded).items())),
        duration_s=_window_s(answers),
        metrics=_metrics(task, answers, scores, missing="no question was asked: " + reasons[0] if unreadable else None),
        invalid=reasons,
        warnings=doubts,
        facts={
            **_task_facts(loaded, doc_ids),
            **_answer_facts(task, answers, scores),
            "prepared_s": round(prepared_s, 3),
        },
    )
    return Evaluation(summary=summary, answers=answers, scores=scores)


def _data_path(engine: EngineHandle, task: QualityTask) -> str | None:
    """Where the questions are, ``{model}`` filled in.

    Raises:
        TaskError: The task's questions come with the model, and this engine's model is no directory.
    """
    if task.data is None or "{model}" not in task.data:
        return task.data
    folder = Path(engine.config.model).expanduser()
    if not folder.is_dir():
        raise TaskError(
            f"quality task {task.name!r}: data={task.data!r} comes with the model, but engine {engine.name!r} serves "
            f"{engine.config.model!r}, which is no directory here; give data a path of its own"
        )
    return task.data.replace("{model}", str(folder))


def _preflight(loaded: LoadedTask, doc_ids: Sequence[int]) -> str | None:
    """Right answers must score exactly 1.0 through the task's own filter; otherwise the reason."""
    from pytest_vllmperf.adapters.lm_eval_runner import right_answers, score_texts

    if loaded.task.oracle is None:
        return None
    texts = right_answers(loaded, doc_ids, loaded.task.oracle)
    return oracle_reason(loaded.task, score_texts(loaded, texts), texts)


def _ask(
    engine: EngineHandle, loaded: LoadedTask, doc_ids: Sequence[int], progress: Progress | None
) -> tuple[tuple[Answer, ...], tuple[Score, ...]]:
    from pytest_vllmperf.adapters.lm_eval_runner import score
    from pytest_vllmperf.adapters.recording_model import RecordingChatModel

    task = loaded.task
    model = RecordingChatModel(
        base_url=engine.base_url,
        model=engine.model_name,
        api_key=engine.api_key or "",
        doc_ids=doc_ids,
        max_concurrency=task.max_concurrency,
        max_gen_toks=task.max_gen_toks,
        seed=task.seed,
        timeout_s=task.request_timeout_s,
        progress=progress,
    )
    scores = score(loaded, model, doc_ids)
    return tuple(model.answers), scores


def _metrics(
    task: QualityTask, answers: Sequence[Answer], scores: Sequence[Score], *, missing: str | None
) -> dict[str, MetricValue]:
    """``accuracy`` with one sample for each question, in order of question, and ``error_rate``."""
    values = tuple(s.value for s in scores if s.filter == task.filter)
    accuracy = MetricValue(
        name="accuracy",
        value=sum(values) / len(values) if values else None,
        n=len(values),
        samples=values,
        missing=None if values else missing or "no answer was scored",
    )
    rate = quality_rates(task, answers, scores).error_rate
    others = metric_values(distributions={}, scalars={"error_rate": rate}, missing={"error_rate": missing or ""})
    return {"accuracy": accuracy, **others}


def _task_facts(loaded: LoadedTask, doc_ids: Sequence[int]) -> dict[str, object]:
    task = loaded.task
    return {
        "lm_eval_task": task.lm_eval_task,
        "gated_filter": task.filter,
        "shots": loaded.shots,
        "max_gen_toks": task.max_gen_toks,
        "seed": task.seed,
        "max_concurrency": task.max_concurrency,
        "questions_available": loaded.size,
        "oracle_checked": task.oracle is not None,
        "doc_ids": list(doc_ids),
    }


def _answer_facts(task: QualityTask, answers: Sequence[Answer], scores: Sequence[Score]) -> dict[str, object]:
    latencies = [(a.ended_ns - a.dispatched_ns) * _NS for a in answers if a.succeeded]
    inputs = [a.input_tokens for a in answers if a.input_tokens is not None]
    outputs = [a.output_tokens for a in answers if a.output_tokens is not None]
    return {
        "filters": scores_by_filter(scores),
        "rates": asdict(quality_rates(task, answers, scores)),
        "input_tokens": sum(inputs) if inputs else None,
        "output_tokens": sum(outputs) if outputs else None,
        "latency_mean_s": round(sum(latencies) / len(latencies), 6) if latencies else None,
    }


def _warnings(task: QualityTask, questions: int, *, examples_from_test: bool) -> tuple[str, ...]:
    doubts: list[str] = []
    if questions < _FEW_QUESTIONS:
        doubts.append(
            f"{questions} questions leave a score uncertain by up to {1 / math.sqrt(questions):.0%} either way"
        )
    if examples_from_test:
        doubts.append(
            f"{task.data} has no train.jsonl: the worked examples come from other questions of the test itself"
        )
    return tuple(doubts)


def _window_s(answers: Sequence[Answer]) -> float:
    """Seconds from the first request to the last answer."""
    if not answers:
        return 0.0
    return (max(a.ended_ns for a in answers) - min(a.dispatched_ns for a in answers)) * _NS
