"""Ending what a killed guardian left, in the next run."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from pytest_vllmperf.adapters.guardian.processes import (
    KILL_DEADLINE_S,
    POLL_S,
    Task,
    descendants,
    everybody,
    is_alive,
    kill,
    task_of,
)
from pytest_vllmperf.adapters.guardian.state import State, boot_id, pid_namespace

__all__ = ["reap"]


def reap(*paths: Path) -> None:
    """End what the engines noted in ``paths`` left, unless somebody guards them.

    Prints a line for each of which something was looked for: who was killed and who survived, as JSON. Of an earlier
    boot only files are left; what was noted in another container is not judged from here.
    """
    deadline = time.monotonic() + KILL_DEADLINE_S
    for path in paths:
        with contextlib.suppress(Exception):  # notes that make no sense must not keep others from being read
            _reap(path, deadline)


def _reap(path: Path, deadline: float) -> None:
    state = State.load(path)
    if state is None:
        return
    killed: dict[int, int] = {}
    left: list[Task] = []
    if state.boot_id == boot_id():
        if state.pid_namespace != pid_namespace() or any(is_alive(*guardian) for guardian in state.guardians.items()):
            return
        while left := _leftovers(state):
            state.take_stock(left)
            killed.update({task.pid: task.start for task in left})
            for task in left:
                kill(task)
            time.sleep(POLL_S)
            if time.monotonic() > deadline:  # which each may find over, having tried once
                left = _leftovers(state)
                break
    if not left:
        state.clean_up(path)
    survivors = sorted(task.pid for task in left)
    sys.stdout.write(json.dumps({"killed": sorted(killed.keys() - survivors), "survivors": survivors}) + "\n")


def _leftovers(state: State) -> list[Task]:
    """The running processes that are certainly this engine's: noted ones, their descendants and their group.

    A group's number alone is as little proof as a process's. It is one while a process we know is in it, for
    that long the kernel gives it to nobody else.
    """
    ours = {pid: task for pid, start in state.processes.items() if (task := task_of(pid)) and task.start == start}
    ours.update({task.pid: task for task in descendants(*ours)})
    if any(task.group == state.leader for task in ours.values()):
        ours.update({task.pid: task for task in everybody() if task.group == state.leader})
    return [task for task in ours.values() if task.runs]
