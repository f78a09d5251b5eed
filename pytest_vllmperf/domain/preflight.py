"""What must hold before a score means anything: readable answers, whole prompts, a model that can add."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.quality import QualityTask

__all__ = ["CANARIES", "canary_reason", "listed_reason", "oracle_reason", "prompt_tokens_reason", "right_canaries"]

_EXAMPLES = 3
_EXAMPLE_CHARS = 90
_CANARIES_NEEDED = 8
_SUMS = ((3, 4), (12, 7), (21, 14), (30, 20), (15, 15), (41, 8), (33, 22), (9, 6), (40, 5), (24, 13))

CANARIES: tuple[tuple[str, int], ...] = tuple(
    (f"Q: Tom has {a} cups and Ann has {b} cups. How many cups together?\nA:", a + b) for a, b in _SUMS
)
"""Ten sums and their results: a model that cannot do eight of them is broken, or is not reached as it should be."""


def oracle_reason(task: QualityTask, scores: Sequence[Score], texts: Mapping[int, str]) -> str | None:
    """Why the task cannot be read at all: right answers do not score 1.0 through its own filter.

    ``texts`` holds the right answer of each question as it was given to the filter.
    """
    gated = [s for s in scores if s.filter == task.filter]
    wrong = [s for s in gated if s.value != 1.0]
    if gated and not wrong:
        return None
    examples = "; ".join(f"{_short(texts[s.doc_id])} was read as {s.extracted!r}" for s in wrong[:_EXAMPLES])
    reached = 0.0 if not gated else 1 - len(wrong) / len(gated)
    return (
        f"right answers score {reached:.1%} through the filter {task.filter!r} instead of 100%: {examples}. "
        "The filter does not fit how this task's answers read; no question was asked. Choose another filter, "
        "mend answer_pattern, or say with oracle how a right answer reads"
    )


def listed_reason(model: str, listed: Sequence[str]) -> str | None:
    """Why the engine is not the one that is meant: it does not list the model under its name."""
    if model in listed:
        return None
    return (
        f"the engine lists no model {model!r}, but {', '.join(map(repr, listed)) or 'none'}; no question was asked. "
        "Likely cause: another server answers on this port, or served-model-name was changed"
    )


def right_canaries(answers: Sequence[Answer]) -> int:
    """How many of :data:`CANARIES`, answered in their order, hold the right sum as a number of its own."""
    return sum(
        str(result) in re.findall(r"\d+", answer.text or "")
        for answer, (_, result) in zip(answers, CANARIES, strict=True)
    )


def canary_reason(answers: Sequence[Answer]) -> str | None:
    """Why the model is not reached as it should be: it cannot add two small numbers."""
    right = right_canaries(answers)
    if right >= _CANARIES_NEEDED:
        return None
    shown = "; ".join(
        f"{a + b} was asked for and {_short(answer.text if answer.succeeded else answer.detail)} came"
        for answer, (a, b) in list(zip(answers, _SUMS, strict=True))[:_EXAMPLES]
    )
    return (
        f"{right} of {len(answers)} sums of two small numbers came out right ({_CANARIES_NEEDED} are needed): {shown}. "
        "Likely cause: a wrong or missing chat template, the wrong endpoint (api), thinking that is not ended, or "
        "broken weights; canaries = false for a model that cannot be expected to add"
    )


def prompt_tokens_reason(counts: Mapping[int, tuple[int, int]]) -> str | None:
    """Why prompts did not arrive whole: the server counted other tokens than its tokenizer makes of them.

    Args:
        counts: By question: tokens the whole prompt has, and tokens the server says it was given.
    """
    wrong = {doc: pair for doc, pair in counts.items() if pair[0] != pair[1]}
    if not wrong:
        return None
    shown = ", ".join(
        f"question {doc}: {given} of {whole} tokens" for doc, (whole, given) in list(wrong.items())[:_EXAMPLES]
    )
    return (
        f"{len(wrong)} of {len(counts)} checked prompts did not reach the model whole ({shown}). Likely cause: the "
        "prompt was cut (truncate_prompt_tokens, a proxy, a max length below prompt and answer together), or another "
        "chat template was applied; scores of cut prompts say nothing"
    )


def _short(text: str | None) -> str:
    if text is None:
        return "null"
    return repr(text if len(text) <= _EXAMPLE_CHARS else f"{text[: _EXAMPLE_CHARS - 1]}…")
