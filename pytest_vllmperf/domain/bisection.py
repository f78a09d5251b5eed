"""Bisect: the first bad one of a row of environments, with steps that may not know.

The relative gate decides each step, so a step is wrong only as rarely as the gate is. One that stays INCONCLUSIVE,
cannot be launched or is INVALID is skipped, and its neighbours are asked; what cannot be told apart then is the answer.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllmperf.errors import ConfigError

__all__ = ["Bisection", "Finding", "Step"]


class Step(str, enum.Enum):
    """What a step says of one place in the row."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skipped"
    """It stayed inconclusive, could not be launched, or its measurement was broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Where the search ended.

    Args:
        first_bad: Its place in the row; None when the search does not know.
        suspects: Places among which the first bad one is, one alone when it is known; empty when not even that is.
        reason: One sentence without names; the caller has them.
    """

    first_bad: int | None
    suspects: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """A row of ``length`` places, of which the first is held to be good and the last bad.

    Both ends are checked first: against itself the good end must not be bad, and the bad end must be. Each middle
    place is compared with the good end, so steps do not add up small changes.
    """

    length: int

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ConfigError(f"bisect needs 2 or more places between good and bad, not {self.length}")

    def next_place(self, steps: Mapping[int, Step]) -> int | None:
        """The place to compare with the good end next; None when the search is over."""
        last = self.length - 1
        if last not in steps:
            return last
        if steps[last] is not Step.BAD:
            return None
        good, bad = self._bracket(steps)
        inside = [place for place in range(good + 1, bad) if place not in steps]
        middle = (good + bad) / 2
        return min(inside, key=lambda place: abs(place - middle), default=None)

    def finding(self, steps: Mapping[int, Step]) -> Finding:
        """What the steps made so far say."""
        last = self.length - 1
        if steps.get(last) is not Step.BAD:
            told = "does not differ from the good one" if steps.get(last) is Step.GOOD else "could not be judged"
            return Finding(first_bad=None, suspects=(), reason=f"does not know: the bad end {told}")
        good, bad = self._bracket(steps)
        suspects = tuple(range(good + 1, bad + 1))
        if any(steps.get(p) is Step.GOOD for p in range(bad, self.length)):
            return Finding(first_bad=None, suspects=(), reason="does not know: a good one follows a bad one")
        if len(suspects) == 1:
            return Finding(first_bad=bad, suspects=suspects, reason="the one before it is good, it is bad")
        return Finding(
            first_bad=None, suspects=suspects, reason=f"does not know which of {len(suspects)}: the rest was skipped"
        )

    def _bracket(self, steps: Mapping[int, Step]) -> tuple[int, int]:
        bad = min(place for place, step in steps.items() if step is Step.BAD)
        good = max((place for place, step in steps.items() if step is Step.GOOD and place < bad), default=0)
        return good, bad

    @property
    def most_steps(self) -> int:
        """Steps without any skipped: the bad end, and the halvings between."""
        return 1 + (self.length - 2).bit_length()
