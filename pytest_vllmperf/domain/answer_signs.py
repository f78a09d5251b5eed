"""Signs in single answers that something else than the model's knowledge decided the score."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pytest_vllmperf.domain.answers import Answer, Score

__all__ = ["early_stops", "identical", "looping", "misread", "stated_number"]

_EARLY_TOKENS = 10
_END_CHARS = 120
"""Where an answer states its result: a number further up is part of the working."""
_LOOP_WINDOW = 400
_LOOP_CHARS = 40
_LOOP = re.compile(r"(.{1,40}?)\1{9,}\s*\Z", re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def early_stops(answers: Sequence[Answer], gated: Sequence[Score]) -> list[Answer]:
    """Answers a stop string ended within ten tokens, before the gated filter found anything."""
    found = {score.doc_id for score in gated if score.found}
    return [
        answer
        for answer in answers
        if isinstance(answer.stop_reason, str)
        and answer.output_tokens is not None
        and answer.output_tokens <= _EARLY_TOKENS
        and answer.doc_id not in found
    ]


def misread(answers: Sequence[Answer], gated: Sequence[Score]) -> list[Answer]:
    """Answers the gated filter scores wrong although they state the right number at their end.

    A right number in the working alone, with another one stated after it, is a wrong answer and no misreading.
    """
    golds = {score.doc_id: stated_number(score.target) for score in gated if not score.value}
    return [
        answer
        for answer in answers
        if (gold := golds.get(answer.doc_id)) is not None and gold in _stated((answer.text or "")[-_END_CHARS:])
    ]


def identical(answers: Sequence[Answer], gated: Sequence[Score]) -> list[Answer]:
    """Answers equal, letter by letter, to the answer of a question with another right result.

    Where a task has one target for all (as IFEval has), every two equal answers count.
    """
    targets = {
        score.doc_id: number if (number := stated_number(score.target)) is not None else score.target for score in gated
    }
    told_apart = len(set(targets.values())) > 1
    by_text: dict[str, list[Answer]] = {}
    for answer in answers:
        if not answer.empty and targets.get(answer.doc_id, "") != "":
            by_text.setdefault(answer.text or "", []).append(answer)
    return [
        answer
        for group in by_text.values()
        if len(group) > 1 and (not told_apart or len({targets.get(a.doc_id) for a in group}) > 1)
        for answer in group
    ]


def looping(answers: Sequence[Answer]) -> list[Answer]:
    """Answers that end in one phrase of up to 40 characters, ten times or more and 40 characters at least."""
    found = []
    for answer in answers:
        match = _LOOP.search((answer.text or "")[-_LOOP_WINDOW:])
        if match and len(match[0].strip()) >= _LOOP_CHARS:
            found.append(answer)
    return found


def stated_number(target: str) -> float | None:
    """The result of a right answer as a number: what follows ``####``, or the whole where it is a number."""
    text = target.rsplit("####", 1)[-1].strip().strip("$.").replace(",", "")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _stated(text: str) -> set[float]:
    """Numbers of the last two sentences that have any; an equation before the last one is working."""
    numbered = [sentence for sentence in _SENTENCES.split(text) if _NUMBER.search(sentence)][-2:]
    stating = [sentence for sentence in numbered if sentence is numbered[-1] or "=" not in sentence]
    return {float(number.replace(",", "")) for sentence in stating for number in _NUMBER.findall(sentence)}
