"""The command line, read and checked: with what the declaring hooks give it becomes the Session of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_vllmperf.asked import Judging
    from pytest_vllmperf.domain.custom_metrics import CustomMetric
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.progress import Progress
    from pytest_vllmperf.session import Session

__all__ = ["is_worker", "session_of"]


def _judging(config: pytest.Config, engines: Mapping[str, EngineConfig]) -> Judging:
    """The judging options, checked.

    Raises:
        ConfigError: A comparison names no two engines, or a number is out of range.
    """
    from pytest_vllmperf.asked import Judging
    from pytest_vllmperf.errors import ConfigError

    numbers = {name: config.getoption(f"--vllmperf-{name}") for name in ("pairs", "launches", "rounds")}
    for name, least in (("pairs", 2), ("launches", 1), ("rounds", 1)):
        if numbers[name] is not None and numbers[name] < least:
            raise ConfigError(f"--vllmperf-{name}={numbers[name]}: must be {least} or more")
    calibrate = config.getoption("--vllmperf-calibrate")
    _check_calibrating(config, calibrate=calibrate, launches=numbers["launches"])
    return Judging(
        compare=_pairs_of_engines(config, "--vllmperf-compare", engines),
        attribute=_pairs_of_engines(config, "--vllmperf-attribute", engines),
        budget_s=_budget_s(config),
        pairs=numbers["pairs"] or 10,
        confirm=config.getoption("--vllmperf-confirm"),
        launches=numbers["launches"],
        rounds=numbers["rounds"],
        inconclusive=config.getoption("--vllmperf-inconclusive"),
        calibrate=calibrate,
        force=config.getoption("--vllmperf-force"),
    )


def _check_calibrating(config: pytest.Config, *, calibrate: bool, launches: int | None) -> None:
    from pytest_vllmperf.errors import ConfigError

    if not calibrate:
        if config.getoption("--vllmperf-force"):
            raise ConfigError("--vllmperf-force belongs to --vllmperf-calibrate; nothing else writes limits")
        return
    from pytest_vllmperf.domain.calibration import LEAST_LAUNCHES  # what it imports takes 40 ms

    if launches is not None and launches < LEAST_LAUNCHES:
        raise ConfigError(
            f"--vllmperf-calibrate with --vllmperf-launches={launches}: the margin of a limit comes from what changes "
            f"between launches, so {LEAST_LAUNCHES} are needed at least"
        )
    no_source = {
        "--vllmperf-quick": "a fifth of the requests is no level to set limits by",
        "--vllmperf-reuse": "an engine that was used before is not what a limit will be judged on",
        "--vllmperf-compare": "a comparison judges changes, and calibrating judges nothing",
        "--vllmperf-attribute": "an attribution launches other engines than the limits are for",
    }
    for option, why in no_source.items():
        if config.getoption(option):
            raise ConfigError(f"--vllmperf-calibrate with {option}: {why}; run the two one after the other")


def _pairs_of_engines(
    config: pytest.Config, option: str, engines: Mapping[str, EngineConfig]
) -> tuple[tuple[str, str], ...]:
    from pytest_vllmperf.errors import ConfigError

    pairs = []
    for text in config.getoption(option):
        baseline, colon, candidate = text.partition(":")
        if not (baseline and colon and candidate):
            raise ConfigError(f"{option}={text}: give two engines as BASE:CANDIDATE")
        for name in (baseline, candidate):
            if name not in engines:
                raise ConfigError(f"{option}={text}: no engine {name!r}; declared: {', '.join(engines)}")
        pairs.append((baseline, candidate))
    return tuple(dict.fromkeys(pairs))


def _budget_s(config: pytest.Config) -> float | None:
    from pytest_vllmperf.domain.units import parse_quantity
    from pytest_vllmperf.errors import ConfigError, UnitError

    text = config.getoption("--vllmperf-budget")
    if text is None:
        return None
    try:
        return parse_quantity(text, unit="s")
    except UnitError as error:
        raise ConfigError(f"--vllmperf-budget={text}: {error}") from error


def session_of(config: pytest.Config) -> Session:
    """Read the matrix, the workloads, the tasks and the command line.

    Raises:
        ConfigError: Any of them is wrong.
    """
    from pytest_vllmperf.asked import Options
    from pytest_vllmperf.declared import named, workloads_by_name
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.reporting import parse_formats
    from pytest_vllmperf.session import Session

    engines = named(
        config.hook.pytest_vllmperf_engines(config=config)[::-1], EngineConfig, hook="pytest_vllmperf_engines"
    )
    wanted = tuple(config.getoption("--vllmperf-engine"))
    session = Session(
        options=Options(
            root=config.rootpath,
            thresholds_path=_path(config, "--vllmperf-thresholds", "vllmperf_thresholds"),
            report_directory=_path(config, "--vllmperf-report-dir", "vllmperf_report_dir"),
            report_formats=parse_formats(
                config.getoption("--vllmperf-report") or str(config.getini("vllmperf_report"))
            ),
            push_url=_push_url(config.getoption("--vllmperf-push")),
            engines=wanted,
            workloads=tuple(config.getoption("--vllmperf-workload")),
            quick=config.getoption("--vllmperf-quick"),
            record_only=any(
                config.getoption(f"--vllmperf-{judging_nothing}")
                for judging_nothing in ("record-only", "attribute", "calibrate")
            ),
            require_gpu=_require_gpu(config, [engines[n].requires for n in wanted if n in engines]),
            share_cpu=config.getoption("--vllmperf-share-cpu"),
            workers=_workers(config),
            judging=_judging(config, engines),
            reuse=config.getoption("--vllmperf-reuse"),
            resume=_resume(config),
            quality=config.getoption("--vllmperf-quality"),
            data=_data(config),
            answers=_answers(config),
        ),
        engines=engines,
        workloads=workloads_by_name(config.hook.pytest_vllmperf_workloads(config=config)[::-1]),
        tasks=_quality_tasks(config),
        metrics=_own_metrics(config),
        progress=(progress := _progress(config)),
    )
    progress.clean = session.redactor.clean
    _ = session.selected_engines  # a wrong --vllmperf-engine is told now
    session.check_selected_workloads()
    return session


def _resume(config: pytest.Config) -> bool:
    """Whether to go on with an unfinished run.

    Raises:
        ConfigError: With workers, each of which would have to leave out the same tests.
    """
    from pytest_vllmperf.errors import ConfigError

    asked = bool(config.getoption("--vllmperf-resume"))
    if asked and (is_worker(config) or getattr(config.option, "numprocesses", None)):
        raise ConfigError("--vllmperf-resume goes on in one process; leave out -n")
    return asked


def _data(config: pytest.Config) -> Path | None:
    """The directory of data sets.

    Raises:
        TaskError: There is none.
    """
    given = config.getoption("--vllmperf-data")
    if not given:
        return None
    path = Path(config.invocation_params.dir, given).resolve()
    if not path.is_dir():
        from pytest_vllmperf.errors import TaskError

        raise TaskError(f"--vllmperf-data={given}: no such directory ({path}); give one that holds gsm8k/test.jsonl, …")
    return path


def _answers(config: pytest.Config) -> Path | None:
    """Where answers are kept: beside pytest-benchmark's runs, where these are files on this machine."""
    from pytest_vllmperf.adapters.answer_store import FOLDER

    storage = str(getattr(config.option, "benchmark_storage", ""))
    if not storage.startswith("file://"):
        return None
    return Path(config.invocation_params.dir, storage.removeprefix("file://"), FOLDER)


def _own_metrics(config: pytest.Config) -> tuple[CustomMetric, ...]:
    batches = config.hook.pytest_vllmperf_metrics(config=config)[::-1]
    if not batches:
        return ()
    from pytest_vllmperf.declared import named
    from pytest_vllmperf.domain.custom_metrics import CustomMetric, register

    found = tuple(named(batches, CustomMetric, hook="pytest_vllmperf_metrics").values())
    register(found)
    return found


def _quality_tasks(config: pytest.Config) -> dict[str, Any]:
    batches = config.hook.pytest_vllmperf_quality_tasks(config=config)[::-1]
    if not batches:
        return {}
    from pytest_vllmperf.declared import named
    from pytest_vllmperf.domain.quality import QualityTask

    return named(batches, QualityTask, hook="pytest_vllmperf_quality_tasks")


def _path(config: pytest.Config, option: str, ini: str) -> Path:
    """A command-line path is relative to where the user stands, one from the ini file to the root."""
    given = config.getoption(option)
    if given:
        return Path(config.invocation_params.dir, given).resolve()
    return config.rootpath / str(config.getini(ini))


def _push_url(given: str | None) -> str | None:
    if not given:
        return None
    from pytest_vllmperf.adapters.prometheus_text import check_gateway

    return check_gateway(given)


def _require_gpu(config: pytest.Config, requires: list[tuple[str, ...]]) -> bool:
    if config.getoption("--vllmperf-require-gpu"):
        return True
    return bool(os.environ.get("CI")) and any("gpu" in wanted for wanted in requires)


def _workers(config: pytest.Config) -> int:
    """How many processes of pytest-xdist run tests; 1 without."""
    given = getattr(config.option, "numprocesses", None)
    return max(1, given) if isinstance(given, int) else 1


def is_worker(config: pytest.Config) -> bool:
    """True in a process of pytest-xdist that runs tests for a controller."""
    return hasattr(config, "workerinput")


def _progress(config: pytest.Config) -> Progress:
    from pytest_vllmperf.progress import Progress

    worker = config.workerinput["workerid"] if is_worker(config) else None  # type: ignore[attr-defined]
    return Progress(config, worker=worker)
