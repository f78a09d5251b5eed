"""Who descends from whom, and ending them: ``/proc`` and system calls only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "KILL_DEADLINE_S",
    "POLL_S",
    "Task",
    "collect",
    "descendants",
    "everybody",
    "is_alive",
    "kill",
    "kill_descendants",
    "task_of",
]

KILL_DEADLINE_S = 60.0
"""The kernel needs seconds to take back tens of GiB of pinned memory from a killed process."""
POLL_S = 0.005


class Task(NamedTuple):
    """A process: ``start`` (clock ticks since boot) tells it from others that had or get its number."""

    pid: int
    start: int
    parent: int
    group: int
    state: str

    @property
    def runs(self) -> bool:
        """Whether it is more than a zombie."""
        return self.state not in "ZX"


def task_of(pid: int) -> Task | None:
    """The process ``pid``; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return Task(pid=pid, start=int(fields[19]), parent=int(fields[1]), group=int(fields[2]), state=fields[0].decode())


def is_alive(pid: int, start: int) -> bool:
    """Whether exactly this process runs."""
    task = task_of(pid)
    return task is not None and task.start == start and task.runs


def everybody() -> list[Task]:
    """All processes of this machine, as far as this container sees them."""
    return [task for path in Path("/proc").iterdir() if path.name.isdigit() and (task := task_of(int(path.name)))]


def descendants(*roots: int) -> list[Task]:
    """The running processes below ``roots``."""
    tasks = everybody()
    found: list[Task] = []
    parents = set(roots)
    while below := [task for task in tasks if task.parent in parents]:
        found += below
        parents = {task.pid for task in below}
    return [task for task in found if task.runs]


def kill(task: Task) -> None:
    """SIGKILL exactly this process: another one that meanwhile got its number is left alone."""
    with contextlib.suppress(OSError):  # it ended by itself
        if is_alive(task.pid, task.start):
            os.kill(task.pid, signal.SIGKILL)


def collect(ended: Callable[[int, int], None]) -> bool:
    """Take the exit codes of ended children.

    False when no child is left. Orphans become children of a subreaper, so then no descendant is left either.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        ended(pid, os.waitstatus_to_exitcode(status))


def kill_descendants(ended: Callable[[int, int], None]) -> list[int]:
    """SIGKILL until nobody is left; the pids that survived :data:`KILL_DEADLINE_S`."""
    deadline = time.monotonic() + KILL_DEADLINE_S
    while collect(ended):
        left = descendants(os.getpid())
        if time.monotonic() > deadline:
            return [task.pid for task in left]
        for task in left:
            kill(task)
        time.sleep(POLL_S)
    return []
