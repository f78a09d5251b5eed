"""The same questions asked twice of one engine: what greedy answers owe to whatever was batched together with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.answers import Answer, Score

__all__ = ["Repeats", "chosen_for_repeats", "repeats_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Answers against those to the same questions a second time.

    Args:
        asked: Questions answered both times.
        reworded: How many of them came back with another text.
        rescored: How many with another score.
    """

    asked: int
    reworded: int
    rescored: int

    @property
    def doubt(self) -> str | None:
        """What that means for a score; None where everything came again."""
        if not self.reworded:
            return None
        return (
            f"{self.reworded} of {self.asked} questions asked twice were answered in other words, {self.rescored} with "
            "another score: what is batched together decides. A change by so few questions against a reference is such "
            "noise; VLLM_BATCH_INVARIANT=1 in the env of both engines (GPU), or max_concurrency = 1, leaves it out"
        )


def chosen_for_repeats(answers: Sequence[Answer], count: int) -> tuple[int, ...]:
    """Ids of the questions to ask again: spread evenly, the last first, so that others are in flight with each."""
    done = [answer.doc_id for answer in answers if answer.succeeded]
    if count <= 0 or not done:
        return ()
    step = max(1, len(done) // count)
    return tuple(done[::-1][::step][:count])


def repeats_of(
    first: Sequence[Answer], second: Sequence[Answer], first_scores: Sequence[Score], second_scores: Sequence[Score]
) -> Repeats:
    """Compare two answers to the same questions; those without both are left out. Scores are the gated filter's."""
    before = {answer.doc_id: answer for answer in first if answer.succeeded}
    again = {answer.doc_id: answer for answer in second if answer.succeeded and answer.doc_id in before}
    scored = {score.doc_id: score.value for score in first_scores}
    rescored = [score for score in second_scores if score.doc_id in again and score.value != scored.get(score.doc_id)]
    return Repeats(
        asked=len(again),
        reworded=sum(answer.text != before[doc_id].text for doc_id, answer in again.items()),
        rescored=len(rescored),
    )
