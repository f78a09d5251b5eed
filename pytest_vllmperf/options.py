"""Options, and how they and the declaring hooks become the Session of a run."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_vllmperf.session import Session

__all__ = ["add_options", "is_worker", "session_of"]


def add_options(parser: pytest.Parser) -> None:
    """Declare options; all of them are inert where no engines are declared."""
    group = parser.getgroup("vllmperf", "vLLM performance, memory and quality gates")
    group.addoption(
        "--vllmperf-engine",
        action="append",
        default=[],
        metavar="NAME",
        help="Measure only this engine of the matrix (repeatable).",
    )
    group.addoption(
        "--vllmperf-workload",
        action="append",
        default=[],
        metavar="NAME",
        help="Measure only this workload, quality task or 'startup'; tests of others are skipped (repeatable).",
    )
    group.addoption(
        "--vllmperf-quick",
        action="store_true",
        help="Send a fifth of each workload's requests (one for each slot at least). Such results are marked, and are "
        "never a baseline.",
    )
    group.addoption(
        "--vllmperf-thresholds",
        metavar="FILE",
        help="Limits to judge by. Default: ini vllmperf_thresholds, else thresholds.toml in the root directory.",
    )
    group.addoption(
        "--vllmperf-record-only",
        action="store_true",
        help="Measure and store without needing limits: exit 0 although nothing was judged (else exit code 12).",
    )
    group.addoption(
        "--vllmperf-require-gpu",
        action="store_true",
        default=None,
        help="Fail, instead of skip, what needs a GPU and finds none. On by itself when CI is set and an engine "
        "that requires a GPU is named by --vllmperf-engine.",
    )
    group.addoption(
        "--vllmperf-share-cpu",
        action="store_true",
        help="Let engines without a GPU run beside those of other processes and workers on this machine. They disturb "
        "each other: by default an engine waits until it is alone.",
    )
    group.addoption(
        "--vllmperf-report-dir",
        metavar="DIR",
        help="Where reports and engine logs go. Default: ini vllmperf_report_dir, else reports/latest.",
    )
    parser.addini("vllmperf_thresholds", "Thresholds file, relative to the root directory.", default="thresholds.toml")
    parser.addini("vllmperf_report_dir", "Report directory, relative to the root directory.", default="reports/latest")


def session_of(config: pytest.Config) -> Session:
    """Read the matrix, the workloads, the tasks and the command line.

    Raises:
        ConfigError: Any of them is wrong.
    """
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.session import Options, Session, named, workloads_by_name

    engines = named(
        config.hook.pytest_vllmperf_engines(config=config)[::-1], EngineConfig, hook="pytest_vllmperf_engines"
    )
    wanted = tuple(config.getoption("--vllmperf-engine"))
    session = Session(
        options=Options(
            root=config.rootpath,
            thresholds_path=_path(config, "--vllmperf-thresholds", "vllmperf_thresholds"),
            report_directory=_path(config, "--vllmperf-report-dir", "vllmperf_report_dir"),
            engines=wanted,
            workloads=tuple(config.getoption("--vllmperf-workload")),
            quick=config.getoption("--vllmperf-quick"),
            record_only=config.getoption("--vllmperf-record-only"),
            require_gpu=_require_gpu(config, [engines[n].requires for n in wanted if n in engines]),
            share_cpu=config.getoption("--vllmperf-share-cpu"),
        ),
        engines=engines,
        workloads=workloads_by_name(config.hook.pytest_vllmperf_workloads(config=config)[::-1]),
        tasks=_quality_tasks(config),
        progress=_Progress(config),
    )
    _ = session.selected_engines  # a wrong --vllmperf-engine is told now
    session.check_selected_workloads()
    return session


def _quality_tasks(config: pytest.Config) -> dict[str, Any]:
    batches = config.hook.pytest_vllmperf_quality_tasks(config=config)[::-1]
    if not batches:
        return {}
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.session import named

    return named(batches, QualityTask, hook="pytest_vllmperf_quality_tasks")


def _path(config: pytest.Config, option: str, ini: str) -> Path:
    """A command-line path is relative to where the user stands, one from the ini file to the root."""
    given = config.getoption(option)
    if given:
        return Path(config.invocation_params.dir, given).resolve()
    return config.rootpath / str(config.getini(ini))


def _require_gpu(config: pytest.Config, requires: list[tuple[str, ...]]) -> bool:
    if config.getoption("--vllmperf-require-gpu"):
        return True
    return bool(os.environ.get("CI")) and any("gpu" in wanted for wanted in requires)


def is_worker(config: pytest.Config) -> bool:
    """True in a process of pytest-xdist that runs tests for a controller."""
    return hasattr(config, "workerinput")


class _Progress:
    """Plain lines on the terminal while work is long; silent under -q.

    A worker of pytest-xdist has no terminal: it writes to the stderr it shares with the controller.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def __call__(self, line: str) -> None:
        if self.config.option.verbose < 0:
            return
        capture: Any = self.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            self._write(line)

    def _write(self, line: str) -> None:
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if is_worker(self.config):
            worker = self.config.workerinput["workerid"]  # type: ignore[attr-defined]
            print(f"  > [{worker}] {line}", file=sys.stderr, flush=True)  # noqa: T201 - there is nothing else
        elif reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"  > {line}")
