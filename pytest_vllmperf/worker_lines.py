"""Lines of pytest-xdist's workers on the controller's terminal, each on a line of its own.

A worker has no terminal: what it writes to the stderr it shares with the controller begins wherever the controller's
dots ended. So it writes its lines into a named pipe, and a thread of the controller prints them between two dots. Lines
shorter than the kernel's PIPE_BUF (4 096 bytes) never mix. A worker on another host finds no pipe and keeps to stderr.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

__all__ = ["WorkerLines", "send_line"]

_KEY = "vllmperf_lines"
_END = "\0"
_LONGEST = 4000
"""Bytes of a line; longer ones are cut, so that each arrives whole."""


class WorkerLines:
    """The controller's end: print what workers say, until closed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._folder = Path(tempfile.mkdtemp(prefix="vllmperf-lines-"))
        self._path = self._folder / "lines"
        os.mkfifo(self._path, 0o600)
        self._pipe = os.open(self._path, os.O_RDWR)  # a writer of its own: the pipe never ends before it is closed
        self._thread = threading.Thread(target=self._print, name="vllmperf-lines", daemon=True)
        self._thread.start()

    def offer(self, workerinput: dict[str, Any]) -> None:
        """Tell a worker where to write."""
        workerinput[_KEY] = str(self._path)

    def close(self) -> None:
        """Print what has arrived, then stop; workers that still speak use their stderr."""
        if self._thread.is_alive():  # a terminal that went away ends it; then nobody empties the pipe
            os.write(self._pipe, f"{_END}\n".encode())
            self._thread.join()
        os.close(self._pipe)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _print(self) -> None:
        with os.fdopen(os.dup(self._pipe), "rb", buffering=0) as pipe:
            rest = b""
            while True:
                *lines, rest = (rest + pipe.read(65536)).split(b"\n")
                for line in lines:
                    text = line.decode("utf-8", "replace")
                    if text == _END:
                        return
                    self._show(text)

    def _show(self, text: str) -> None:
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return
        # under xdist pytest does not know that its line of dots is an open one
        opened = reporter._tw.width_of_current_line > 0
        reporter.write(f"{chr(10) * opened}{text}\n", flush=True)


def send_line(config: pytest.Config, line: str) -> bool:
    """In a worker: have the controller print ``line``; False where it does not listen."""
    path: str | None = getattr(config, "workerinput", {}).get(_KEY)
    if path is None:
        return False
    with contextlib.suppress(OSError):
        # non-blocking: a pipe that nobody reads, or one that is full, must not hold up what is measured
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            text = " ".join(line.split("\n")).encode()[:_LONGEST]
            return os.write(pipe, text + b"\n") == len(text) + 1
        finally:
            os.close(pipe)
    return False
