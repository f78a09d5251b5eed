"""What a run says while work is long: a live line on a terminal, plain lines everywhere else, nothing under ``-q``.

Lines stay; a :class:`~pytest_vllmperf.domain.status.Status` is only shown: on a terminal as a bar that is
rewritten in place and gone before pytest prints its next word, elsewhere as a line every half minute.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from pytest_vllmperf.worker_lines import send_line

if TYPE_CHECKING:
    import pytest

    from pytest_vllmperf.domain.status import Status

__all__ = ["Progress"]

_PLAIN_EVERY_S = 30.0


class Progress:
    """The :class:`~pytest_vllmperf.domain.status.Telling` of one pytest process.

    A worker of pytest-xdist has no terminal: it hands lines to the controller (see ``worker_lines.py``). With
    ``--capture=no`` tests write to the terminal themselves, so that nothing is rewritten in place there.
    """

    def __init__(self, config: pytest.Config, *, worker: str | None) -> None:
        self._config = config
        self._worker = worker
        self.clean: Callable[[str], str] = str
        self._live: _Live | None = None
        self._last_plain = time.monotonic()
        self._terminal = None if worker is not None or config.option.capture == "no" else _own_terminal()

    def __call__(self, line: str) -> None:
        """Print a line, silent under ``-q``."""
        self._hide()
        self._last_plain = time.monotonic()
        if self._config.option.verbose >= 0:
            with self._uncaptured():
                self._write(self.clean(line))

    def status(self, status: Status | None) -> None:
        """Show, or take away, the live line; where there is none, print one now and then."""
        if status is None:
            self._hide()
        elif self._config.option.verbose < 0:
            return
        elif self._terminal is not None:
            if self._live is None:
                with self._uncaptured():
                    self._reporter().ensure_newline()
                self._live = _Live(self._terminal, colour=self._config.option.color != "no")
            self._live.show(status)
        elif time.monotonic() - self._last_plain >= _PLAIN_EVERY_S:
            self(status.line)

    def _hide(self) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None

    def _uncaptured(self) -> contextlib.AbstractContextManager[None]:
        capture: Any = self._config.pluginmanager.get_plugin("capturemanager")
        found: contextlib.AbstractContextManager[None] = (
            capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext()
        )
        return found

    def _reporter(self) -> Any:
        return self._config.pluginmanager.get_plugin("terminalreporter")

    def _write(self, line: str) -> None:
        reporter = self._reporter()
        if self._worker is not None:
            if send_line(self._config, f"  > [{self._worker}] {line}"):
                return
            print(f"  > [{self._worker}] {line}", file=sys.stderr, flush=True)  # noqa: T201 - there is nothing else
        elif reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"  > {line}")
            reporter.flush()  # into a file or a pipe, as in CI, Python writes whole blocks


def _own_terminal() -> TextIO | None:
    """The terminal behind stdout under a descriptor of its own, which pytest's capturing does not redirect; or None."""
    try:
        return os.fdopen(os.dup(sys.stdout.fileno()), "w") if sys.stdout.isatty() else None
    except (OSError, ValueError):
        return None


class _Live:
    """One bar, drawn only when there is news: no thread of its own takes time from what is measured."""

    def __init__(self, file: Any, *, colour: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(file=file, force_terminal=True, no_color=None if colour else True, highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._what: str | None = None
        self._bar.start()

    def show(self, status: Status) -> None:
        if status.what != self._what:
            for task in list(self._bar.task_ids):
                self._bar.remove_task(task)
            self._bar.add_task(status.what, total=status.planned, figures="", left="")
            self._what = status.what
        left = status.remaining_s
        self._bar.update(
            self._bar.task_ids[0],
            completed=status.done or 0,
            figures=status.figures,
            left="" if left is None else f"{max(1, round(left))} s left",
            refresh=True,
        )

    def close(self) -> None:
        self._bar.stop()
