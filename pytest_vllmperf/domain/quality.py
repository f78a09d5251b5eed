"""Quality tasks: what is asked of a model, how its answers are read, and when a score may not be believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from pytest_vllmperf.errors import TaskError

__all__ = ["QualityTask", "ValidityLimits"]

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
        disagreement: Largest difference between the gated filter and any other that read something, over the
            answers that other read.
        early_stop_rate: Answers a stop string ended within ten tokens, before the gated filter found anything.
        misread_rate: Answers scored wrong although the right number stands at their end / answers.
        identical_rate: Answers that are equal to the answer of a question with another right result / answers.
        loop_rate: Answers that end in one phrase repeated over and over / answers.
    """

    error_rate: float = 0.0
    empty_rate: float = 0.02
    truncated_rate: float = 0.05
    unextracted_rate: float = 0.10
    disagreement: float = 0.10
    early_stop_rate: float = 0.02
    misread_rate: float = 0.10
    identical_rate: float = 0.05
    loop_rate: float = 0.02

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise TaskError(f"validity limit {item.name}={value!r} must be a ratio from 0 to 1, such as 0.05")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityTask:
    """Questions of one kind, asked at temperature 0 (unless told) and scored by lm-eval.

    Either ``lm_eval_task`` names one of lm-eval's own definitions (its questions come from the hub,
    or from ``data``), or ``data`` alone gives questions in GSM8K's published format and
    ``answer_pattern`` says how an answer reads.

    Args:
        name: Short and unique; the ``workload`` of thresholds and reports.
        lm_eval_task: Name of a task (or group of tasks) lm-eval ships. One that generates text is asked
            by ``api``; one that compares log-likelihoods is asked by completions on the same server.
        data: A JSONL file of questions, or a directory with ``test.jsonl`` (and ``train.jsonl`` to
            draw worked examples from). ``{model}`` stands for the engine's model directory.
        questions: How many are asked: a random subset decided by ``seed``; None asks all.
        fewer_allowed: Ask all there are where the data holds fewer than ``questions``; otherwise that is an error.
        shots: Worked examples before each question; None keeps the task's own number.
        max_gen_toks: Longest answer in tokens; None takes the task's own, raised to 1024 at least
            (lm-eval's default of 256 cuts worked answers short).
        stop: Stop strings; None keeps the task's own.
        api: ``chat``, or ``completions`` for a base model without a chat template.
        sampling: More fields of each request, such as ``{ temperature = 0.6, top_p = 0.95 }``.
        chat_template_kwargs: Switches of the model's chat template, such as ``{ enable_thinking = false }``.
        filter: The gated filter: which reading of the answers ``accuracy`` is computed from. Every
            other filter of the task is recorded beside it.
        metric: lm-eval's metric that scores one question.
        answer_pattern: For ``data`` alone: a regular expression whose first group is the answer.
        prompt: For ``data`` alone: what is asked, as a Jinja template over the row's fields.
        oracle: What a right answer looks like, as a Jinja template over the row's fields, ``target``
            (lm-eval's) and ``gold`` (what follows ``####``). It must score exactly 1.0 through the
            task's own filter. None where a task has no right answers; the check is skipped then.
        canaries: Ask ten sums first that any model can do; 8 right answers are needed.
        reference: Name of the engine whose answers to the same questions these are compared with, from this
            run or the latest stored one.
        kl_texts: Right answers the model is made to read, for ``kl_mean``, ``top1_agreement`` and
            ``perplexity``; 0 leaves that out.
        repeats: Questions asked once more at the end, to see whether the same answers come again; 0 leaves that out,
            and so do sampled answers and compared log-likelihoods.
        broken_kl: Mean KL divergence from the reference (nats a token) from which unreadable answers are
            the model's own fault: FAIL instead of INVALID.
        unavailable: ``fail`` or ``skip`` where data or log-likelihoods cannot be had.
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
    fewer_allowed: bool = False
    max_gen_toks: int | None = None
    stop: tuple[str, ...] | None = None
    api: Literal["chat", "completions"] = "chat"
    sampling: Mapping[str, object] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    filter: str = "strict-match"
    metric: str = "exact_match"
    answer_pattern: str | None = None
    prompt: str = "{{question}}"
    oracle: str | None = "{{target}}"
    canaries: bool = True
    reference: str | None = None
    kl_texts: int = 50
    repeats: int = 16
    broken_kl: float = 0.2
    unavailable: Literal["fail", "skip"] = "fail"
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
        for attribute in ("request_timeout_s", "broken_kl"):
            value = getattr(self, attribute)
            if isinstance(value, bool) or not value > 0:
                raise TaskError(f"quality task {self.name!r}: {attribute}={value!r} must be above 0")
        self._check_request()
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

    def _check_request(self) -> None:
        where = f"quality task {self.name!r}"
        for attribute, allowed in (("api", ("chat", "completions")), ("unavailable", ("fail", "skip"))):
            value = getattr(self, attribute)
            if value not in allowed:
                raise TaskError(f"{where}: {attribute}={value!r} must be {' or '.join(map(repr, allowed))}")
        for attribute in ("sampling", "chat_template_kwargs"):
            value = getattr(self, attribute)
            if not isinstance(value, Mapping):
                raise TaskError(f"{where}: {attribute}={value!r} must be a table such as {{ top_p = 0.95 }}")
        for name, why in _OURS.items():
            if name in self.sampling:
                raise TaskError(f"{where}: sampling.{name} is not free; {why}")
        if self.stop is not None:
            if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
                raise TaskError(f"{where}: stop={self.stop!r} must be a list of strings, none of them empty")
            object.__setattr__(self, "stop", tuple(self.stop))
        if self.chat_template_kwargs and self.api != "chat":
            raise TaskError(f"{where}: chat_template_kwargs needs api='chat'; completions use no template")

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


_OURS = {
    "model": "the engine decides it",
    "messages": "the task decides them",
    "prompt": "the task decides it",
    "stop": "write stop = [ … ] in the task",
    "max_tokens": "write max_gen_toks in the task",
    "stream": "answers are taken whole",
    "n": "each question is asked once",
}


_COUNTS = (
    ("questions", 1, ", or None for all"),
    ("shots", 0, ", or None for the task's own"),
    ("max_gen_toks", 1, ", or None for the task's own"),
    ("kl_texts", 0, ""),
    ("repeats", 0, ""),
    ("max_concurrency", 1, ""),
    ("seed", 0, ""),
)
