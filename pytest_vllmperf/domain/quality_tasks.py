"""The quality tasks known by name, the options a thresholds file may replace, and the draw of questions."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import fields, replace

from pytest_vllmperf.domain.quality import QualityTask, ValidityLimits
from pytest_vllmperf.errors import TaskError

__all__ = ["BUILT_IN_TASKS", "QUALITY_LEVELS", "at_level", "draw_questions", "task_with_options"]


QUALITY_LEVELS: Mapping[str, int | None] = {"quick": 30, "standard": 200, "full": None}
"""Questions asked at each level of ``--vllmperf-quality``; None asks all."""


def at_level(task: QualityTask, level: str) -> QualityTask:
    """``task`` with as many questions as ``level`` asks, or all there are where the data holds fewer."""
    return replace(task, questions=QUALITY_LEVELS[level], fewer_allowed=True)


def draw_questions(size: int, questions: int | None, seed: int, *, fewer_allowed: bool = False) -> tuple[int, ...]:
    """Which of ``size`` questions are asked: ascending ids of a random subset, the same for the same seed.

    A random subset, because data sets are often ordered: the first n are not like the rest.

    Raises:
        TaskError: More questions are asked for than there are, unless ``fewer_allowed``.
    """
    if questions is None or (fewer_allowed and questions > size):
        return tuple(range(size))
    if questions > size:
        raise TaskError(f"questions={questions} is more than the {size} there are; ask fewer, or leave it out for all")
    return tuple(sorted(random.Random(seed).sample(range(size), questions)))  # noqa: S311 - a draw, no secret


def task_with_options(
    name: str, options: Mapping[str, object], *, known: Mapping[str, QualityTask] | None = None
) -> QualityTask:
    """The task of a ``[quality.tasks.NAME]`` table: the known task of that name with options replaced.

    For a name nobody knows, the table defines a whole task: its ``data`` and ``answer_pattern``, or an
    ``lm_eval_task`` (by default the name itself). ``[quality.tasks.NAME.validity]`` holds
    :class:`ValidityLimits`.

    Raises:
        TaskError: An unknown option (with the allowed ones) or a value that cannot work.
    """
    tasks = BUILT_IN_TASKS if known is None else known
    allowed = [f.name for f in fields(QualityTask) if f.name != "name"]
    given = dict(_known_keys(options, allowed, f"quality.tasks.{name}"))
    base = tasks.get(name)
    if "validity" in given:
        given["validity"] = _validity(given["validity"], base, f"quality.tasks.{name}.validity")
    if base is not None:
        return replace(base, **given)  # type: ignore[arg-type]  # values are checked by __post_init__
    if "lm_eval_task" not in given and "answer_pattern" not in given:
        given["lm_eval_task"] = name
    return QualityTask(name=name, **given)  # type: ignore[arg-type]  # values are checked by __post_init__


def _known_keys(options: Mapping[str, object], allowed: list[str], where: str) -> Mapping[str, object]:
    for key in options:
        if key not in allowed:
            raise TaskError(f"{where}: option {key!r} is unknown; allowed: {', '.join(allowed)}")
    return options


def _validity(given: object, base: QualityTask | None, where: str) -> ValidityLimits:
    if not isinstance(given, Mapping):
        raise TaskError(f"{where}={given!r} must be a table such as {{ empty_rate = 0.02 }}")
    limits = _known_keys(given, [f.name for f in fields(ValidityLimits)], where)
    return replace(base.validity if base else ValidityLimits(), **limits)  # type: ignore[arg-type]  # checked there


TINYMATH_PATTERN = r"The answer is (-?[0-9][0-9,]*(?:\.[0-9]+)?)"
"""How the bundled model states its result; it never writes GSM8K's ``####``."""

_STATED = "The answer is {{gold}}."
_ZERO_SHOT = ValidityLimits(disagreement=1.0)
"""A prompt that never asks for a form leaves the strict filter nothing to read; that is no sign of a fault."""
_GENERATED = (
    QualityTask(name="gsm8k", lm_eval_task="gsm8k", questions=200, shots=5),
    QualityTask(name="gsm8k_cot", lm_eval_task="gsm8k_cot", questions=200, shots=8, oracle=_STATED),
    QualityTask(
        name="gsm8k_cot_zeroshot",
        lm_eval_task="gsm8k_cot_zeroshot",
        questions=200,
        shots=0,
        filter="flexible-extract",
        oracle=_STATED,
        validity=_ZERO_SHOT,
    ),
    QualityTask(
        name="gsm8k_cot_llama",
        lm_eval_task="gsm8k_cot_llama",
        questions=200,
        shots=8,
        oracle="The final answer is {{gold}}",
    ),
    QualityTask(name="gsm8k_platinum", lm_eval_task="gsm8k_platinum", questions=200, shots=5),
    QualityTask(
        name="ifeval",
        lm_eval_task="ifeval",
        questions=200,
        shots=0,
        max_gen_toks=1280,
        filter="none",
        metric="prompt_level_strict_acc",
        oracle=None,
    ),
    QualityTask(
        name="gpqa_main_cot_zeroshot",
        lm_eval_task="gpqa_main_cot_zeroshot",
        questions=200,
        shots=0,
        max_gen_toks=2048,
        filter="flexible-extract",
        oracle="The answer is {{answer}}.",
        validity=_ZERO_SHOT,
    ),
    QualityTask(
        name="tinymath",
        data="{model}/test.jsonl",
        questions=200,
        shots=0,
        max_gen_toks=64,
        answer_pattern=TINYMATH_PATTERN,
        prompt="Q: {{question}}\nA:",
        oracle=_STATED,
    ),
)
_COMPARED = (
    ("mmlu", 5, "acc"),
    ("hellaswag", 0, "acc_norm"),
    ("winogrande", 0, "acc"),
    ("arc_easy", 0, "acc_norm"),
    ("arc_challenge", 0, "acc_norm"),
)
"""Tasks that compare log-likelihoods, with worked examples and the metric that is gated."""

BUILT_IN_TASKS: Mapping[str, QualityTask] = {
    task.name: task
    for task in (
        *_GENERATED,
        *(
            QualityTask(
                name=name, lm_eval_task=name, questions=200, shots=shots, filter="none", metric=metric, oracle=None
            )
            for name, shots, metric in _COMPARED
        ),
    )
}
"""lm-eval's own definitions with what each needs to be read, and the questions that come with the bundled model."""
