"""What came back from a model: each question as it was answered (Answer), and as each filter read it (Score)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_vllmperf.domain.records import RequestOutcome

__all__ = ["Answer", "Score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question as it was answered.

    Args:
        doc_id: Place of the question in the data set, from 0.
        outcome: Success, or the class of failure; ``detail`` says more in words.
        status: HTTP status, None when none arrived.
        text: The answer; None when the server's ``content`` was null or there was no answer.
        reasoning_chars: Length of the thinking, sent apart from the answer or cut off it at ``</think>``.
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

    @property
    def thinking_cut(self) -> bool:
        """True when it was cut before the thinking ended: there is no answer yet, right or wrong."""
        return self.truncated and self.empty and self.reasoning_chars > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one filter reads one answer.

    Args:
        doc_id: Place of the question in the data set.
        filter: Name of the filter.
        extracted: What it found; empty or ``[invalid]`` where it found nothing.
        value: The gated metric: 1 is right, 0 wrong.
        target: The right result as lm-eval has it; empty where a task has none.
        others: Every other metric of the task, one value or one for each instruction (IFEval).
    """

    doc_id: int
    filter: str
    extracted: str
    value: float
    target: str = ""
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """False when the filter found no answer in the text."""
        return self.extracted not in ("", "[invalid]")
