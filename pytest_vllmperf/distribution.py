"""What a run's controller and its pytest-xdist workers tell each other. Registered where xdist is loaded.

Workers learn the limits, which are read once; the controller learns from a worker which tests there are, what each
measured (on its report, see ``plugin.py``), and at the end whether the run was a partial one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllmperf.collection import (
    announcement,
    check_before_launch,
    engine_of,
    engines_of,
    is_rerun,
    resume_comparison,
    why_no_reruns,
)
from pytest_vllmperf.scheduling import comparison_in, engine_in, make_scheduler
from pytest_vllmperf.stash import SESSION, STATE
from pytest_vllmperf.worker_lines import WorkerLines

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

    from pytest_vllmperf.session import Session

__all__ = ["Distribution", "check_scheduled", "limits_from_controller", "tell_controller"]

_LIMITS = "vllmperf_limits"
_PARTIAL = "vllmperf_partial"
_USES_ENGINES = "vllmperf_uses_engines"


class Distribution:
    """The controller's side: pytest-xdist's hooks."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.asked = False
        self.lines: WorkerLines | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
        """Keep each engine on one worker. Other modes are refused once it is known that engines are used."""
        return make_scheduler(config, log, config.stash[SESSION].engines) if config.option.dist == "load" else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Send the limits along. A file that is wrong is told when it is known that engines are used."""
        from pytest_vllmperf.errors import ConfigError

        if self.lines is None:
            self.lines = WorkerLines(self.config)
        self.lines.offer(node.workerinput)
        try:
            node.workerinput[_LIMITS] = self.config.stash[SESSION].limits_as_text()
        except ConfigError:
            return

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Check and announce with the first worker's tests, before any is handed out."""
        engines = self.config.stash[SESSION].engines
        if self.asked:
            return
        self.asked = True
        judged = [nodeid for nodeid in ids if engine_in(nodeid, engines) or comparison_in(nodeid, engines)]
        if not judged:
            resume_comparison(self.config)
            return
        if self.config.pluginmanager.has_plugin("rerunfailures") and self.config.getoption("reruns", None):
            raise pytest.UsageError(why_no_reruns(judged[0]))
        _refuse_other_modes(self.config)
        check_before_launch(self.config)
        terminal: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None and self.config.option.verbose >= 0:
            terminal.ensure_newline()
            for line in announcement(self.config):
                terminal.write_line(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: WorkerController) -> None:
        """Take what a worker said when it ended; one that crashed said nothing."""
        said: dict[str, Any] = getattr(node, "workeroutput", None) or {}
        state = self.config.stash[STATE]
        state.partial = said.get(_PARTIAL) or state.partial
        state.uses_engines = said.get(_USES_ENGINES, False) or state.uses_engines

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Print workers' last words: xdist has ended them, and the summary comes next."""
        self._close()

    def pytest_unconfigure(self) -> None:
        """The same for a run that broke off."""
        self._close()

    def _close(self) -> None:
        if self.lines is not None:
            self.lines.close()
            self.lines = None


def _refuse_other_modes(config: pytest.Config) -> None:
    mode = config.option.dist
    if mode != "load":
        raise pytest.UsageError(
            f"--dist={mode} would run one engine's tests on several workers and launch it on each of them; use -n N "
            "alone (or --dist=load): each engine's tests then stay together on one worker"
        )


def limits_from_controller(config: pytest.Config) -> str | None:
    """In a worker: the limits as the controller read them; None in any other process."""
    sent: str | None = getattr(config, "workerinput", {}).get(_LIMITS)
    return sent


def tell_controller(config: pytest.Config) -> None:
    """In a worker, at its end: say what the controller cannot see from test ids."""
    state = config.stash[STATE]
    output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
    output[_PARTIAL] = state.partial
    output[_USES_ENGINES] = state.uses_engines


def check_scheduled(item: pytest.Item, session: Session) -> None:
    """In a worker: fail a test that was scheduled with another engine's tests, because its id reads so.

    Running it would launch its engine a second time.
    """
    if engines_of(item) and is_rerun(item):
        pytest.fail(why_no_reruns(item.nodeid), pytrace=False)
    wanted, scheduled = engine_of(item), engine_in(item.nodeid, session.engines)
    if wanted is not None and wanted != scheduled:
        pytest.fail(
            f"{item.nodeid} uses engine {wanted!r}, but its id reads like one of {scheduled!r}, with whose tests it "
            "was scheduled: rename the engine or the parameter, or run without -n",
            pytrace=False,
        )
