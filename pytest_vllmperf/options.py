"""Options, and how they and the declaring hooks become the Session of a run."""

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
        "--vllmperf-quality",
        choices=("quick", "standard", "full"),
        help="Questions of each quality task: 30, 200 or all, drawn at random by the task's seed; data sets that hold "
        "fewer are asked whole. Default: as many as each task says (200 for the built-in ones).",
    )
    group.addoption(
        "--vllmperf-data",
        metavar="DIR",
        help="Take the questions of lm-eval's tasks from here instead of from the hub: DIR/gsm8k/test.jsonl and "
        "train.jsonl, DIR/ifeval/input_data.jsonl, … in the format they are published in.",
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
        "--vllmperf-reuse",
        action="store_true",
        help="Leave engines running at the end, and use those an earlier run left where nothing about them changed: "
        "for editing and running again. Such results are marked, and are never a baseline. See 'vllmperf ps' and "
        "'vllmperf stop'; an engine unused for an hour ends by itself.",
    )
    group.addoption(
        "--vllmperf-resume",
        action="store_true",
        help="Go on with the run in the report directory that was killed or interrupted: what its tests found is taken "
        "over, the others run, and engines that have none left are not launched. Not with -n.",
    )
    group.addoption(
        "--vllmperf-report-dir",
        metavar="DIR",
        help="Where reports and engine logs go. Default: ini vllmperf_report_dir, else reports/latest.",
    )
    _add_judging_options(parser)
    _add_report_options(parser)
    parser.addini("vllmperf_thresholds", "Thresholds file, relative to the root directory.", default="thresholds.toml")
    parser.addini("vllmperf_report_dir", "Report directory, relative to the root directory.", default="reports/latest")


def _add_report_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("vllmperf")
    group.addoption(
        "--vllmperf-report",
        metavar="FORMATS",
        help="What to write, separated by commas: html (index.html), md (report.md), json (report.json), "
        "prom (metrics.prom, for Prometheus), csv (requests/: every request of every load). "
        "Default: ini vllmperf_report, else html,md,json.",
    )
    group.addoption(
        "--vllmperf-push",
        metavar="URL",
        help="Push the final metrics to this Prometheus push gateway, under job vllmperf.",
    )
    parser.addini("vllmperf_report", "Report formats, as for --vllmperf-report.", default="html,md,json")


def _add_judging_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("vllmperf-judging", "vLLM performance gates: comparisons, repetition, doubt")
    group.addoption(
        "--vllmperf-compare",
        action="append",
        default=[],
        metavar="BASE:CANDIDATE",
        help="Launch two engines of the matrix alternately and judge the second against the first; runs the tests "
        "that use vllm_compare (repeatable).",
    )
    group.addoption(
        "--vllmperf-attribute",
        action="append",
        default=[],
        metavar="BASE:CANDIDATE",
        help="Find out which of the settings in which two engines of the matrix differ does what to each metric; runs "
        "the tests that use vllm_attribute (repeatable). It judges nothing: exit code 0 without any limit.",
    )
    group.addoption(
        "--vllmperf-budget",
        metavar="DURATION",
        help='Time an attribution, or the search for a capacity, may take, such as "45 min": it makes fewer launches, '
        "or loads, to keep to it. Default: as long as its plan needs.",
    )
    group.addoption(
        "--vllmperf-pairs",
        type=int,
        default=None,
        metavar="N",
        help="Launches of each compared engine at most (default: 10; looks after 4, 6, 8 and 10 pairs).",
    )
    group.addoption(
        "--vllmperf-confirm",
        action="store_true",
        help="Repeat each FAIL of a comparison once with fresh launches, and answer a suspicion against history with a "
        "comparison.",
    )
    group.addoption(
        "--vllmperf-launches",
        type=int,
        default=None,
        metavar="N",
        help="Launch each engine up to N times for limits on levels, with an interval over launches (looks after 3, 5 "
        "and 8). Default: launches in thresholds.toml, else 1.",
    )
    group.addoption(
        "--vllmperf-rounds",
        type=int,
        default=None,
        metavar="N",
        help="Measure each workload N times in one launch, with other prompts. Default: rounds in thresholds.toml, "
        "else 3 on a GPU; without one a closed loop is measured once.",
    )
    group.addoption(
        "--vllmperf-inconclusive",
        choices=("warn", "fail"),
        default=None,
        help="Whether too little evidence fails a test. Default: inconclusive in thresholds.toml, else warn.",
    )
    group.addoption(
        "--vllmperf-calibrate",
        action="store_true",
        help="Propose limits for this hardware from several launches of each engine (5 unless --vllmperf-launches says "
        "otherwise) and write them into thresholds.toml, showing the difference. Judges nothing; limits that are there "
        "are tightened, never loosened.",
    )
    group.addoption(
        "--vllmperf-force",
        action="store_true",
        help="Let --vllmperf-calibrate loosen limits as well.",
    )


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
    from pytest_vllmperf.domain.calibration import LEAST_LAUNCHES
    from pytest_vllmperf.errors import ConfigError

    if not calibrate:
        if config.getoption("--vllmperf-force"):
            raise ConfigError("--vllmperf-force belongs to --vllmperf-calibrate; nothing else writes limits")
        return
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
