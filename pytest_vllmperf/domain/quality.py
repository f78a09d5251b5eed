"""Quality tasks: what is asked of a model (QualityTask), and what came back (Answer, Score)."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from pytest_vllmperf.domain.records import RequestOutcome
from pytest_vllmperf.errors import TaskError

__all__ = [
    "BUILT_IN_TASKS",
    "Answer",
    "QualityTask",
    "Score",
    "ValidityLimits",
    "draw_questions",
    "task_with_options",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidityLimits:
    """Rates from which a score says nothing about the model, each a ratio from 0 to 1.

    The healthy rate is 0 for all of them; a run above any limit is INVALID, whatever it scored.

    Args:
        error_rate: Requests without a complete answer / questions.
        empty_rate: Answers that are null or blank / answers.
        truncated_rate: Answers cut at ``max_gen_toks`` (``finish_reason`` is ``length``) / answers.
        unextracted_rate: Answers in which the gated filter finds nothing / answers.
        disagreement: Largest difference between the score of the gated filter and of any other.
    """

    error_rate: float = 0.0
    empty_rate: float = 0.02
    truncated_rate: float = 0.05
    unextracted_rate: float = 0.10
    disagreement: float = 0.10

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise TaskError(f"validity limit {item.name}={value!r} must be a ratio from 0 to 1, such as 0.05")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityTask:
    """Questions of one kind, asked by chat at temperature 0 and scored by lm-eval.

    Either ``lm_eval_task`` names one of lm-eval's own definitions (its questions come from the hub,
    or from ``data``), or ``data`` alone gives questions in GSM8K's published format and
    ``answer_pattern`` says how an answer reads.

    Args:
        name: Short and unique; the ``workload`` of thresholds and reports.
        lm_eval_task: Name of a task lm-eval ships; it must be one that generates text.
        data: A JSONL file of questions, or a directory with ``test.jsonl`` (and ``train.jsonl`` to
            draw worked examples from). ``{model}`` stands for the engine's model directory.
        questions: How many are asked: a random subset decided by ``seed``; None asks all.
        shots: Worked examples before each question; None keeps the task's own number.
        max_gen_toks: Longest answer in tokens.
        filter: The gated filter: which reading of the answers ``accuracy`` is computed from. Every
            other filter of the task is recorded beside it.
        metric: lm-eval's metric that scores one question.
        answer_pattern: For ``data`` alone: a regular expression whose first group is the answer.
        prompt: For ``data`` alone: what is asked, as a Jinja template over the row's fields.
        oracle: What a right answer looks like, as a Jinja template over the row's fields, ``target``
            (lm-eval's) and ``gold`` (what follows ``####``). It must score exactly 1.0 through the
            task's own filter. None where a task has no right answers; the check is skipped then.
        seed: Decides the subset and the worked examples.
        max_concurrency: Requests in flight at most.
        request_timeout_s: A request not answered by then has failed.
        validity: When the score may not be believed.

    Raises:
        TaskError: A value that cannot work, or a pair of values that contradict each other.
    """

    name: str
    lm_eval_task: str | None = None
    data: str | None = None
    questions: int | None = None
    shots: int | None = None
    max_gen_toks: int = 1024
    filter: str = "strict-match"
    metric: str = "exact_match"
    answer_pattern: str | None = None
    prompt: str = "{{question}}"
    oracle: str | None = "{{target}}"
    seed: int = 0
    max_concurrency: int = 8
    request_timeout_s: float = 600.0
    validity: ValidityLimits = field(default_factory=ValidityLimits)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise TaskError(f"quality task name {self.name!r}: use letters, digits, '_', '.' and '-'")
        if self.data is not None:
            object.__setattr__(self, "data", str(self.data))
        for attribute, least, open_end in _COUNTS:
            self._check_count(attribute, least, open_end)
        for attribute in ("filter", "metric", "prompt"):
            value = getattr(self, attribute)
            if not isinstance(value, str) or not value:
                raise TaskError(f"quality task {self.name!r}: {attribute}={value!r} must be a string, not empty")
        if isinstance(self.request_timeout_s, bool) or not self.request_timeout_s > 0:
            raise TaskError(f"quality task {self.name!r}: request_timeout_s={self.request_timeout_s!r} must be above 0")
        if not isinstance(self.validity, ValidityLimits):
            raise TaskError(f"quality task {self.name!r}: validity={self.validity!r} must be ValidityLimits(…)")
        self._check_source()

    def _check_count(self, attribute: str, least: int, open_end: str) -> None:
        value = getattr(self, attribute)
        if value is None and open_end:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TaskError(
                f"quality task {self.name!r}: {attribute}={value!r} must be a whole number, {least} or more{open_end}"
            )

    def _check_source(self) -> None:
        where = f"quality task {self.name!r}"
        if self.lm_eval_task is None and self.data is None:
            raise TaskError(f"{where}: give lm_eval_task (one of lm-eval's own), or data and answer_pattern")
        if self.lm_eval_task is not None:
            if self.answer_pattern is not None:
                raise TaskError(
                    f"{where}: answer_pattern={self.answer_pattern!r} is for data alone; lm-eval's task "
                    f"{self.lm_eval_task!r} brings its own filters: choose one with filter"
                )
            return
        if self.answer_pattern is None:
            raise TaskError(
                f"{where}: data alone needs answer_pattern, how an answer reads, "
                r'such as r"The answer is (-?[0-9.,]*[0-9])"'
            )
        try:
            groups = re.compile(self.answer_pattern).groups
        except (re.error, TypeError) as error:
            raise TaskError(
                f"{where}: answer_pattern={self.answer_pattern!r} is no regular expression: {error}"
            ) from None
        if groups != 1:
            raise TaskError(
                f"{where}: answer_pattern={self.answer_pattern!r} has {groups} groups; it must have exactly one, "
                "around the answer"
            )

    def describe(self) -> str:
        """One line for headers and reports, such as ``200 questions, 5 shots, filter strict-match``."""
        count = "all questions" if self.questions is None else f"{self.questions} questions"
        shots = "" if self.shots is None else f", {self.shots} shot{'' if self.shots == 1 else 's'}"
        return f"{count}{shots}, filter {self.filter}"


_COUNTS = (
    ("questions", 1, ", or None for all"),
    ("shots", 0, ", or None for the task's own"),
    ("max_gen_toks", 1, ""),
    ("max_concurrency", 1, ""),
    ("seed", 0, ""),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question as it was answered.

    Args:
        doc_id: Place of the question in the data set, from 0.
        outcome: Success, or the class of failure; ``detail`` says more in words.
        status: HTTP status, None when none arrived.
        text: The answer; None when the server's ``content`` was null or there was no answer.
        reasoning_chars: Length of the thinking the server sent apart from the answer.
        finish_reason: As the server gave it: ``stop``, ``length``, …
        stop_reason: The stop string (or token id) hit, where the server says so.
        input_tokens: Prompt tokens by the server's usage; None where it sent none.
        output_tokens: Generated tokens by the server's usage; never guessed.
        dispatched_ns: When the client began to send it.
        ended_ns: When the answer was complete, or the request had failed.
        detail: One line for people; None on success.
    """

    doc_id: int
    outcome: RequestOutcome
    status: int | None
    text: str | None
    reasoning_chars: int
    finish_reason: str | None
    stop_reason: str | int | None
    input_tokens: int | None
    output_tokens: int | None
    dispatched_ns: int
    ended_ns: int
    detail: str | None

    @property
    def succeeded(self) -> bool:
        """True when a complete answer arrived, even an empty one."""
        return self.outcome is RequestOutcome.SUCCESS

    @property
    def empty(self) -> bool:
        """True for a null or blank answer."""
        return not (self.text or "").strip()

    @property
    def truncated(self) -> bool:
        """True when it was cut at the token limit."""
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one filter reads one answer: what it extracted, and the metric's value (1 is right, 0 wrong)."""

    doc_id: int
    filter: str
    extracted: str
    value: float

    @property
    def found(self) -> bool:
        """False when the filter found no answer in the text."""
        return self.extracted not in ("", "[invalid]")


def draw_questions(size: int, questions: int | None, seed: int) -> tuple[int, ...]:
    """Which of ``size`` questions are asked: ascending ids of a random subset, the same for the same seed.

    A random subset, because data sets are often ordered: the first n are not like the rest.

    Raises:
        TaskError: More questions are asked for than there are.
    """
    if questions is None:
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

BUILT_IN_TASKS: Mapping[str, QualityTask] = {
    task.name: task
    for task in (
        QualityTask(name="gsm8k", lm_eval_task="gsm8k", questions=200, shots=5, max_gen_toks=1024),
        QualityTask(
            name="tinymath",
            data="{model}/test.jsonl",
            questions=200,
            shots=0,
            max_gen_toks=64,
            answer_pattern=TINYMATH_PATTERN,
            prompt="Q: {{question}}\nA:",
            oracle="The answer is {{gold}}.",
        ),
    )
}
"""GSM8K through lm-eval's own definition, and the questions that come with the bundled model."""
