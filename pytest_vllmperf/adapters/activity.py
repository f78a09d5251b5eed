"""Whether a process tree that says nothing still gets somewhere: processor time, memory, files that grow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Activity", "activity", "growing_folders"]

_MOST_FILES = 20_000
_WORKING = 0.05
"""Share of a core above which a tree is at work: an idle server uses less than a hundredth."""
_PAGES_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a tree had done at one moment; sums over its processes and over the folders it writes to."""

    at_s: float
    cpu_s: float
    memory_bytes: int
    log_bytes: int
    cache_bytes: int

    def since(self, earlier: Activity) -> str | None:
        """The sign of progress since ``earlier``; None where there is none."""
        if self.log_bytes != earlier.log_bytes:
            return "the log grows"
        if self.cache_bytes > earlier.cache_bytes:
            return "a cache grows"
        if self.memory_bytes > earlier.memory_bytes + _PAGES_BYTES:
            return "it takes memory"
        if self.cpu_s - earlier.cpu_s > _WORKING * (self.at_s - earlier.at_s):
            return "it computes"
        return None


def activity(pids: Iterable[int], *, log: Path, folders: Sequence[Path], at_s: float) -> Activity:
    """Look now. What cannot be read counts as nothing."""
    cpu_s, memory = 0.0, 0
    for pid in pids:
        seconds, resident = _of_process(pid)
        cpu_s, memory = cpu_s + seconds, memory + resident
    try:
        size = log.stat().st_size
    except OSError:
        size = 0
    grown = sum(_folder_bytes(folder) for folder in folders)
    return Activity(at_s=at_s, cpu_s=cpu_s, memory_bytes=memory, log_bytes=size, cache_bytes=grown)


def growing_folders(model: str, env: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a start leaves traces without a word in the log: the model's place in the hub cache.

    Folders of compiled code are not among them: others write there as well, and compiling takes processor time.
    """
    home = Path(env.get("HOME") or Path.home())
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(env.get("HF_HUB_CACHE") or Path(env.get("HF_HOME") or cache / "huggingface") / "hub")
    return (hub / f"models--{model.replace('/', '--')}",)


def _of_process(pid: int) -> tuple[float, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0, 0
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def _folder_bytes(folder: Path) -> int:
    """Bytes of the files below, of the first 20 000 of them."""
    total = seen = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            seen += 1
            if seen > _MOST_FILES:
                return total
            try:
                total += Path(parent, name).lstat().st_size
            except OSError:  # moved to its final name meanwhile
                continue
    return total
