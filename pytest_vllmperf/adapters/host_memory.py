"""Host memory of an engine: the proportional set size of its whole process tree."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pytest_vllmperf.domain.pacing import Allowance, Pace
from pytest_vllmperf.domain.records import MemorySample

__all__ = ["HostMemory", "is_running", "process_tree", "process_tree_pss_bytes", "resident_bytes"]

_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)
_PAGE = os.sysconf("SC_PAGESIZE")
_TREE = {"base_s": 1.0, "share": 0.001, "longest_s": 10.0}
"""Who belongs to the engine: the whole process table is read for it (2 ms of CPU time for a hundred processes)."""
_READING_SHARE = 0.003
"""Of one core, for walking page tables: 12 ms of CPU time for each GiB that is mapped in pages of 4 KiB."""
_CHANGED_SHARE, _CHANGED_BYTES = 0.01, 8 * 2**20
"""From this change of what is resident on, the proportional set size is read again. The kernel counts resident pages in
batches for each processor: the more of those there are, the more pages may be missing for a while."""
_STALE_S = 30.0
"""After this long it is read again: where nothing seems to have changed (a page that two processes shared may have
become two), if the share covers it; where something has, whatever it costs."""
_SAMPLED_EVERY_S = 1.0


def process_tree_pss_bytes(pid: int, members: Collection[int] | None = None) -> int | None:
    """PSS in bytes of ``pid``, its descendants and its process group (or of these ``members``), summed.

    PSS and not RSS: pages shared by several processes count once, where a sum of RSS counts them for each
    (390 MiB too much for a small vLLM server). None when any of them could not be read: a partial sum would
    pass limits it should not.
    """
    total = 0
    for member in process_tree(pid) if members is None else members:
        try:
            found = _PSS.search(Path(f"/proc/{member}/smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        except OSError:
            return None
        # A zombie's file is there and empty: it owns no memory.
        total += int(found[1]) * 1024 if found else 0
    return total or None


def resident_bytes(members: Collection[int]) -> int:
    """Resident memory of these processes, summed: what several share counts several times.

    The kernel keeps this number, so it costs microseconds for a process. Who has ended counts as nothing.
    """
    pages = 0
    for member in members:
        with contextlib.suppress(OSError):
            file = os.open(f"/proc/{member}/statm", os.O_RDONLY | os.O_CLOEXEC)
            try:
                pages += int(os.read(file, 256).split()[1])
            finally:
                os.close(file)
    return pages * _PAGE


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    pss_bytes: int | None
    resident_bytes: int
    cpu_s: float


class HostMemory:
    """Proportional set size of an engine's process tree over time, read where it may have changed.

    Reading it walks the page tables of every process, what is resident in them is a number that the kernel keeps. So
    the latter is looked at often, and the former read at once when it moved by more than 1 %, up or down. What a
    steady engine leaves of the readings' share of one core is there when its memory rises.

    Args:
        pid: Leader of the tree.
        clock: Monotonic seconds.
    """

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.members: tuple[int, ...] = ()
        self._pid, self._clock = pid, clock
        self._tree, self._tree_at_s = Pace(**_TREE), -math.inf
        self._allowance = Allowance(share=_READING_SHARE, now_s=clock())
        self._reading: _Reading | None = None
        self._unread: list[tuple[int, int]] = []
        self._sampled_at_s = 0.0
        self._highest = self._highest_read = 0

    def look(self, *, last: bool = False) -> list[MemorySample]:
        """The samples that are known now: what was read, or once a second the last reading while that still holds.

        What a reading tells holds for the looks before it as well where the same was resident: where the memory moved
        and reading had to wait, samples come late.

        Args:
            last: Nothing comes after this look, so it gives a sample.
        """
        now_s, at_ns = self._clock(), time.monotonic_ns()
        if last or now_s - self._tree_at_s >= self._tree.period_s:
            self._find_members(now_s)
        resident = resident_bytes(self.members)
        self._highest = max(self._highest, resident)
        holds = self._holds(resident)
        found: list[MemorySample] = []
        if self._is_due(now_s, holds, last=last):
            self._read(now_s, resident)
            found = [self._sample(then_ns) for then_ns, then in self._unread if self._holds(then)]
            self._unread.clear()
        elif not last and now_s - self._sampled_at_s < _SAMPLED_EVERY_S:
            return []
        elif not holds:
            self._sampled_at_s = now_s
            self._unread.append((at_ns, resident))
            return []
        self._sampled_at_s = now_s
        return [*found, self._sample(at_ns)]

    def _sample(self, at_ns: int) -> MemorySample:
        assert self._reading is not None
        return MemorySample(at_ns=at_ns, host_bytes=self._reading.pss_bytes, device_bytes=None)

    @property
    def unread_bytes(self) -> int:
        """By how much more memory was resident than at any reading; 0 where that is within what may go unread."""
        missed = self._highest - self._highest_read
        return missed if missed > _tolerance(self._highest_read) else 0

    def _find_members(self, now_s: float) -> None:
        began_s = time.thread_time()
        self.members, self._tree_at_s = tuple(process_tree(self._pid)), now_s
        self._tree.cost(time.thread_time() - began_s)

    def _holds(self, resident: int) -> bool:
        """Whether the last reading can still be taken for the memory now."""
        if self._reading is None:
            return False
        return abs(resident - self._reading.resident_bytes) <= _tolerance(self._reading.resident_bytes)

    def _is_due(self, now_s: float, holds: bool, *, last: bool) -> bool:
        if self._reading is None:
            return True
        age_s = now_s - self._reading.at_s
        if holds:  # what is left then is enough for a rise
            return age_s >= _STALE_S and self._allowance.covers(self._reading.cpu_s, now_s=now_s)
        return last or age_s >= _STALE_S or self._allowance.covers(0.0, now_s=now_s)

    def _read(self, now_s: float, resident: int) -> None:
        began_s = time.thread_time()
        pss = process_tree_pss_bytes(self._pid, self.members)
        cpu_s = time.thread_time() - began_s
        if self._reading is not None:  # the first one has to be
            self._allowance.spend(cpu_s)
        self._reading = _Reading(now_s, pss, resident, cpu_s)
        self._highest_read = max(self._highest_read, resident)


def _tolerance(resident: int) -> float:
    return max(_CHANGED_SHARE * resident, _CHANGED_BYTES)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and more of it than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in (b"Z", b"X")


def process_tree(pid: int) -> set[int]:
    """``pid``, its descendants and its process group."""
    import psutil

    members = {pid}
    with contextlib.suppress(psutil.Error):  # when the leader is gone, its group may still have members
        members |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    return members | {other for other in psutil.pids() if _group_of(other) == pid}


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:  # it ended meanwhile
        return None
