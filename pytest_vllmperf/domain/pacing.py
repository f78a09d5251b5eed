"""How often to look, so that looking stays cheap on whatever machine this is; and how often to tell of a wait."""

from __future__ import annotations

from collections import deque

__all__ = ["Allowance", "Pace", "Reminder"]

_REMEMBERED = 3


class Pace:
    """A period that grows with what one look costs, so that all of them stay within a share of one core.

    Drivers and kernels differ a hundredfold in what the same question costs: a GPU's list of processes takes the
    driver milliseconds, the memory of a process with 100 GiB walks as many page tables. Of the last three costs the
    least counts, since the first look often imports something.

    Args:
        base_s: The period while looks are cheap.
        share: Of one core, that all looks together may take.
        longest_s: The period never exceeds this, whatever a look costs: sparse is better than blind.
    """

    def __init__(self, *, base_s: float, share: float, longest_s: float) -> None:
        self._base_s, self._share, self._longest_s = base_s, share, longest_s
        self._costs_s: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def period_s(self) -> float:
        """Seconds from one look to the next."""
        if len(self._costs_s) < 2:
            return self._base_s
        return min(max(self._base_s, min(self._costs_s) / self._share), self._longest_s)

    def cost(self, cpu_s: float) -> None:
        """Take one look's CPU seconds into account."""
        self._costs_s.append(cpu_s)


class Allowance:
    """CPU time for looks that are dear and seldom worth it: a share of one core, saved up while none is.

    It may be overdrawn by the last look, which the time after it pays for. In the long run looks take no more than
    the share; after a quiet time several can follow each other at once.

    Args:
        share: Of one core.
        now_s: The time, on a clock that never goes back.
        saved_s: What may be spent right away.
        most_s: What can be saved up.
    """

    def __init__(self, *, share: float, now_s: float, saved_s: float = 0.0, most_s: float = 1.0) -> None:
        self._share, self._most_s = share, most_s
        self._saved_s, self._at_s = saved_s, now_s

    def covers(self, cost_s: float, *, now_s: float) -> bool:
        """Whether so much has been saved up; of ``cost_s`` 0: whether nothing is owed."""
        self._saved_s = min(self._saved_s + self._share * (now_s - self._at_s), self._most_s)
        self._at_s = now_s
        return self._saved_s >= cost_s

    def spend(self, cost_s: float) -> None:
        """Take one look's CPU seconds from it."""
        self._saved_s -= cost_s


class Reminder:
    """When to tell of a wait that goes on: once it is no longer short, and now and then from there on.

    Args:
        started_s: When it began, on a clock that never goes back.
        after_s: Told for the first time when it has lasted longer than this.
        again_s: And again each time so much more has passed.
    """

    def __init__(self, *, started_s: float, after_s: float = 1.0, again_s: float = 30.0) -> None:
        self.started_s = started_s
        self._again_s = again_s
        self._next_s = started_s + after_s

    def due(self, now_s: float) -> bool:
        """Whether to tell now; if so, it counts as told."""
        if now_s <= self._next_s:
            return False
        self._next_s = now_s + self._again_s
        return True
