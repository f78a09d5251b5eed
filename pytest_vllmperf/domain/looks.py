"""Looks: when a sequential gate may judge, and how much of its error each of them may spend.

Judging whenever new data arrives and stopping at the first pass or failure multiplies the error. Splitting
the error over looks fixed beforehand keeps it, by the union bound and without numerical integration.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vllmperf.errors import ConfigError

__all__ = ["Looks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """Sample counts at which a gate may judge.

    Args:
        at: Rising sample counts; the last one is the budget.
        weights: What each look may spend, relative to the others; by default the samples it adds.

    Raises:
        ConfigError: No looks, not rising from 1 or more, or another number of weights.
    """

    at: tuple[int, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.at or self.at[0] < 1 or any(a >= b for a, b in zip(self.at, self.at[1:], strict=False)):
            raise ConfigError(f"looks {self.at!r} must be sample counts that rise, starting at 1 or more")
        if not self.weights:
            object.__setattr__(self, "weights", _added(self.at))
        if len(self.weights) != len(self.at) or min(self.weights) <= 0:
            raise ConfigError(f"looks {self.at!r} need one weight above 0 each, not {self.weights!r}")

    @property
    def budget(self) -> int:
        """Samples at the last look."""
        return self.at[-1]

    def following(self, n: int) -> int | None:
        """The first look after ``n`` samples; None when the budget is used up."""
        return next((look for look in self.at if look > n), None)

    def share(self, n: int) -> float:
        """Part of the whole error that the look at ``n`` may spend.

        Between two looks it is the part of the coming one, and beyond the budget of the last: good
        enough to show an interval, while only a look may decide.
        """
        place = next((i for i, look in enumerate(self.at) if look >= n), -1)
        return self.weights[place] / sum(self.weights)

    def spent(self, n: int) -> float:
        """Part of the whole error that the looks up to ``n`` samples have spent together."""
        return sum(w for look, w in zip(self.at, self.weights, strict=True) if look <= n) / sum(self.weights)

    def within(self, budget: int) -> Looks:
        """The looks of a smaller budget, which is the last of them; the error is shared out anew.

        To be chosen before the first sample: cutting a running gate short and sharing out anew
        would spend error twice.

        Raises:
            ConfigError: ``budget`` is below 1.
        """
        if budget >= self.budget:
            return self
        at = (*(look for look in self.at if look < budget), budget)
        return Looks(at=at, weights=() if self.weights == _added(self.at) else self.weights[: len(at)])


def _added(at: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(float(b - a) for a, b in zip((0, *at), at, strict=False))
