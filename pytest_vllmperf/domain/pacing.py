"""How often to look, so that looking stays cheap on whatever machine this is."""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]

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
