"""A task and its questions, which need no engine: what is wrong with them is known before a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.quality_tasks import draw_questions
from pytest_vllmperf.errors import TaskError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.lm_eval_runner import LoadedTask, Rows
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.domain.quality import QualityTask

__all__ = ["Questions", "check_task", "load_questions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """A loaded task, the questions drawn, and doubts about them."""

    loaded: LoadedTask
    doc_ids: tuple[int, ...]
    warnings: tuple[str, ...]


def load_questions(engine: EngineConfig, task: QualityTask, data: Path | None) -> Questions:
    """Read the data, build lm-eval's task and draw its questions.

    Args:
        engine: Whose model the data may come with.
        task: What is asked.
        data: Directory of offline data, with one directory for each task; None takes them from the hub.

    Raises:
        TaskError: The task cannot be asked: unknown, its data malformed, more questions than there are.
        TaskUnavailable: Its data cannot be had here.
    """
    from pytest_vllmperf.adapters.lm_eval_runner import load_task

    rows = _rows(engine, task, data)
    loaded = load_task(task, rows)
    return Questions(loaded=loaded, doc_ids=_drawn(loaded), warnings=(*loaded.warnings, *_borrowed(loaded, rows)))


def check_task(engine: EngineConfig, task: QualityTask, data: Path | None) -> None:
    """Find out whether ``task`` can be asked of ``engine``, as far as that is known before a launch.

    Raises:
        TaskError: As :func:`load_questions`, or ``oracle`` names a field the questions do not have.
        TaskUnavailable: Its data cannot be had here.
    """
    from pytest_vllmperf.adapters.lm_eval_runner import right_answers

    found = load_questions(engine, task, data)
    if task.oracle is not None and not found.loaded.compares:
        right_answers(found.loaded, found.doc_ids, task.oracle)


def _rows(engine: EngineConfig, task: QualityTask, data: Path | None) -> Rows | Mapping[str, Rows] | None:
    """The questions at hand, or None where they come from the hub."""
    from pytest_vllmperf.adapters.question_files import read_published, read_questions

    fields = ("question", "answer") if _in_gsm8k_format(task) else ()
    own = _own_data(engine, task)
    if own is not None:
        return read_questions(own, fields=fields)
    if data is None:
        return None
    return read_published(data, str(task.lm_eval_task), fields=fields)


def _in_gsm8k_format(task: QualityTask) -> bool:
    return task.lm_eval_task is None or (task.lm_eval_task or "").startswith("gsm8k")


def _own_data(engine: EngineConfig, task: QualityTask) -> str | None:
    """Where the questions are, ``{model}`` filled in.

    Raises:
        TaskError: The task's questions come with the model, and this engine's model is no directory.
    """
    if task.data is None or "{model}" not in task.data:
        return task.data
    folder = Path(engine.model).expanduser()
    if not folder.is_dir():
        raise TaskError(
            f"quality task {task.name!r}: data={task.data!r} comes with the model, but engine {engine.name!r} serves "
            f"{engine.model!r}, which is no directory here; give data a path of its own"
        )
    return task.data.replace("{model}", str(folder))


def _drawn(loaded: LoadedTask) -> tuple[int, ...]:
    task = loaded.task
    try:
        drawn = draw_questions(len(loaded.askable), task.questions, task.seed, fewer_allowed=task.fewer_allowed)
    except TaskError as error:
        raise TaskError(f"quality task {task.name!r}: {error}") from None
    return tuple(loaded.askable[place] for place in drawn)


def _borrowed(loaded: LoadedTask, rows: object) -> tuple[str, ...]:
    splits = set(rows) if isinstance(rows, Mapping) else None
    if loaded.shots <= 0 or splits is None or splits & {"train", "dev"} or "test" not in splits:
        return ()
    where = loaded.task.data or "the data"
    return (f"{where} has no train.jsonl: the worked examples come from other questions of the test itself",)
