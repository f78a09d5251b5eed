"""What a stubborn engine says it started, and waiting until nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

PATIENCE_S = 30.0
GONE_S = 2.0
"""The promise: whatever happens to pytest, nothing of an engine is left 2 s later."""
STUBBORN = (sys.executable, str(Path(__file__).with_name("stubborn_engine.py")), "stubborn")
POLITE = (*STUBBORN[:2], "polite")

Found = TypeVar("Found")


def until(condition: Callable[[], Found], patience_s: float = PATIENCE_S) -> Found:
    """Poll until it holds."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.01)
    return value


class Traces:
    """Everything one launch of a stubborn engine left in this world."""

    def __init__(self, told: dict) -> None:
        self.pids: dict[str, int] = told["pids"]
        self.files = [Path(name) for name in told["files"]]
        self.guardian = self.pids["guardian"]
        self.witness = psutil.Process(self.guardian).ppid()
        self.processes = {
            **{name: psutil.Process(pid) for name, pid in self.pids.items()},
            "witness": psutil.Process(self.witness),
        }

    def alive(self, *names: str) -> list[str]:
        """Those still running; a zombie is dead and is its parent's business."""
        found = []
        for name in names or self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = self.processes[name]
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(name)
        return found

    def left(self) -> list[str]:
        return [*self.alive(), *(str(file) for file in self.files if file.exists())]

    def assert_gone(self, since: float, *, limit_s: float = GONE_S) -> None:
        """Wait until nothing is left, ``limit_s`` from ``since`` at most."""
        while left := self.left():
            assert time.monotonic() - since < limit_s, f"still there after {limit_s} s: {left}"
            time.sleep(0.005)
        print(f"nothing left after {time.monotonic() - since:.3f} s")  # -rP shows it

    def kill(self, *names: str) -> float:
        """SIGKILL them, first suspended so that none sees the other die; when that was done."""
        for number in (signal.SIGSTOP, signal.SIGKILL) if len(names) > 1 else (signal.SIGKILL,):
            for name in names:
                self.processes[name].send_signal(number)
        return time.monotonic()


def traces_in(folder: Path, count: int = 1) -> list[Traces]:
    """What the stubborn engines that report to ``folder`` started, once all have told."""
    paths = until(lambda: len(found := sorted(folder.glob("*.json"))) >= count and found)
    return [Traces(json.loads(path.read_text())) for path in paths]


@contextlib.contextmanager
def no_trace_afterwards(folder: Path) -> Iterator[None]:
    """End what a failing test would leave."""
    try:
        yield
    finally:
        for path in folder.glob("*.json"):
            told = json.loads(path.read_text())
            for name in ("leader", "in_group", "escaped"):
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if "stubborn" in " ".join(psutil.Process(told["pids"][name]).cmdline()):
                        os.kill(told["pids"][name], signal.SIGKILL)
            Path(told["files"][0]).unlink(missing_ok=True)
