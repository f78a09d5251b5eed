"""Which tests run for which engine, in which order, and what is checked before the first engine starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_vllmperf.stash import SESSION, STATE

if TYPE_CHECKING:
    from pytest_vllmperf.session import Session

__all__ = [
    "NOT_ASKED",
    "again",
    "announcement",
    "attribution_of",
    "check_before_launch",
    "comparison_of",
    "engine_of",
    "engines_of",
    "is_rerun",
    "order_by_engine",
    "parametrize",
    "resume_comparison",
    "split_by_workload",
    "split_comparisons",
    "why_no_reruns",
    "workloads_of",
]


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses an engine once for each, and a quality test once for each task."""
    session = metafunc.config.stash.get(SESSION, None)
    if "vllm_engine" in metafunc.fixturenames:
        if session is None:
            raise pytest.UsageError(
                f"{metafunc.definition.nodeid} uses vllm_engine, but no engines are declared: implement "
                "pytest_vllmperf_engines(config) in conftest.py"
            )
        names = _engines_of(metafunc, session)
        metafunc.parametrize("vllm_engine", names, ids=names, indirect=True, scope="session")
    if "vllm_quality_task" in metafunc.fixturenames:
        tasks = list(session.tasks) if session is not None else []
        metafunc.parametrize("vllm_quality_task", tasks, ids=tasks, indirect=True)
    if "vllm_swept" in metafunc.fixturenames:
        given = list(dict.fromkeys(workload for _, workload in _sweep(session))) or [NOT_ASKED]
        metafunc.parametrize("vllm_swept", given, ids=given, indirect=True)
    if "vllm_comparison" in metafunc.fixturenames:
        specs = list(session.comparison_names) if session is not None else []
        given = specs or [NOT_ASKED]  # a test without a comparison is left out, see split_comparisons
        metafunc.parametrize("vllm_comparison", given, ids=given, indirect=True, scope="session")
    if "vllm_attribution" in metafunc.fixturenames:
        given = (list(session.attribution_names) if session is not None else []) or [NOT_ASKED]
        metafunc.parametrize("vllm_attribution", given, ids=given, indirect=True, scope="session")


def _sweep(session: Session | None) -> tuple[tuple[str, str], ...]:
    """What ``[[sweep]]`` lists; read while collecting only where a test asks for it."""
    from pytest_vllmperf.errors import ConfigError

    try:
        return session.thresholds.sweep if session is not None else ()
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


NOT_ASKED = "no-comparison"
"""The parameter of comparing (and attributing) tests where the command line asks for none."""


def comparison_of(item: pytest.Item) -> str | None:
    """The comparison a test belongs to, :data:`NOT_ASKED` included; None for any other test."""
    return _parameter(item, "vllm_comparison")


def attribution_of(item: pytest.Item) -> str | None:
    """The attribution a test makes, :data:`NOT_ASKED` included; None for any other test."""
    return _parameter(item, "vllm_attribution")


def _parameter(item: pytest.Item, *fixtures: str) -> str | None:
    """What a test was given for the first of these fixtures that it uses; asked of each test, again and again."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None:
        for fixture in fixtures:
            if isinstance(name := callspec.params.get(fixture), str):
                return name
    return None


def _experiment_of(item: pytest.Item) -> str | None:
    """The comparison or attribution a test belongs to: either owns its launches."""
    return _parameter(item, "vllm_comparison", "vllm_attribution")


def engines_of(item: pytest.Item) -> tuple[str, ...]:
    """Every engine a test is about: one, the two of its comparison, or none."""
    one, comparison = engine_of(item), _experiment_of(item)
    if comparison is not None and comparison != NOT_ASKED:
        baseline, _, candidate = comparison.partition(":")
        return baseline, candidate if candidate != baseline else again(candidate)
    return (one,) if one is not None else ()


def again(engine: str) -> str:
    """What an engine is called where it is compared with itself."""
    return f"{engine}.again"


def split_comparisons(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Tests to run, and comparing, attributing or sweeping tests that nobody asks for: those count for nothing."""
    kept: list[pytest.Item] = []
    idle: list[pytest.Item] = []
    for item in items:
        (idle if _experiment_of(item) == NOT_ASKED or _is_unlisted(item) else kept).append(item)
    return kept, idle


def _is_unlisted(item: pytest.Item) -> bool:
    """Whether it sweeps an engine and workload that ``[[sweep]]`` does not put together."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "vllm_swept" not in params:
        return False
    return (engine_of(item), params["vllm_swept"]) not in _sweep(item.config.stash.get(SESSION, None))


def _engines_of(metafunc: pytest.Metafunc, session: Session) -> list[str]:
    marker = metafunc.definition.get_closest_marker("vllm_engine")
    wanted = marker.args if marker else tuple(session.engines)
    for name in wanted:
        if name not in session.engines:
            raise pytest.UsageError(
                f"{metafunc.definition.nodeid}: vllm_engine({name!r}): no such engine; "
                f"declared: {', '.join(session.engines)}"
            )
    return [name for name in session.selected_engines if name in wanted]


def engine_of(item: pytest.Item) -> str | None:
    """The engine a test runs on; None for a test without one."""
    return _parameter(item, "vllm_engine")


def order_by_engine(items: list[pytest.Item], session: Session) -> None:
    """Put each engine's tests together, whatever pytest or other plugins made of the order.

    Older pytest reorders session parameters by index, random-order plugins by taste; either would
    launch an engine again and again. Tests without engine go first, so that none holds a GPU idle.
    """
    place = {name: number for number, name in enumerate(session.engines, start=1)}
    comparisons = {name: number for number, name in enumerate(session.comparison_names, start=-len(session.engines))}
    before = min(comparisons.values(), default=0)

    def turn(item: pytest.Item) -> int:
        comparison = _experiment_of(item)  # launches engines itself, so no other may be live by then
        return comparisons.get(comparison, before) if comparison else place.get(engine_of(item) or "", before - 1)

    items.sort(key=turn)


def split_by_workload(items: list[pytest.Item], session: Session) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Tests to run and tests to leave out, by ``--vllmperf-workload``, as far as collecting can tell.

    It can where a marker ``vllm_workload``, a parameter called ``workload``, a quality task or the start-up fixture
    names the workload. Every other test runs, and is skipped once it asks for one that is not selected.
    """
    if not session.options.workloads:
        return items, []
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        named = workloads_of(item) if engines_of(item) else set()
        (kept if not named or any(session.selects(name) for name in named) else left_out).append(item)
    return kept, left_out


def workloads_of(item: pytest.Item) -> set[str]:
    """What a test measures, as far as its marker, parameters and fixtures tell."""
    marker = item.get_closest_marker("vllm_workload")
    if marker:
        return set(marker.args)
    params = item.callspec.params if hasattr(item, "callspec") else {}
    named = {
        params[name] for name in ("workload", "vllm_swept", "vllm_quality_task") if isinstance(params.get(name), str)
    }
    fixtures = set(getattr(item, "fixturenames", ()))
    starts = "vllm_start_up" in fixtures and not fixtures & {"vllm_measure", "vllm_evaluate"}
    return named or ({"startup"} if starts else set())


def is_rerun(item: pytest.Item) -> bool:
    """Whether pytest-rerunfailures would run this test again after a failure."""
    config = item.config
    if not config.pluginmanager.has_plugin("rerunfailures"):
        return False
    return bool(config.getoption("reruns", None)) or item.get_closest_marker("flaky") is not None


def why_no_reruns(nodeid: str) -> str:
    """What to tell whoever wants a judged test repeated."""
    return (
        f"{nodeid} uses an engine, and pytest-rerunfailures would run it again until it passes: a limit tried often "
        "enough is always met; remove --reruns or the flaky marker, or use -p no:rerunfailures"
    )


def check_before_launch(config: pytest.Config, items: Sequence[pytest.Item] = ()) -> None:
    """Check everything the user wrote, and note whether only a part of it was selected.

    ``items`` are the tests, where this process has them: the controller of pytest-xdist has not.

    Raises:
        pytest.UsageError: Something is wrong, or history cannot be kept.
    """
    from pytest_vllmperf.errors import ConfigError

    run, state = config.stash[SESSION], config.stash[STATE]
    for item in items if config.pluginmanager.has_plugin("rerunfailures") else ():
        if engines_of(item) and is_rerun(item):
            raise pytest.UsageError(why_no_reruns(item.nodeid))
    if run.options.engines or run.options.workloads or config.option.keyword or config.option.markexpr:
        state.partial = "only a part was selected"
    if any(not (config.invocation_params.dir / arg.split("::")[0]).is_dir() for arg in config.args):
        state.partial = "only some files were selected"
    try:
        _ = run.thresholds
        if not config.option.collectonly:
            run.check_limits_resolve()
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
    if not config.option.collectonly:
        _prepare_history(config)
        state.checked = True


def resume_comparison(config: pytest.Config) -> None:
    """Let pytest-benchmark compare as ever in a run that uses no engine."""
    from pytest_vllmperf.adapters import benchmark_storage

    benchmark_storage.resume_comparison(config, config.stash[STATE].comparison)


def _prepare_history(config: pytest.Config) -> None:
    from pytest_vllmperf.adapters import benchmark_storage, history
    from pytest_vllmperf.errors import HistoryError

    try:
        history.prepare(config)
        config.stash[STATE].unsaved = benchmark_storage.store_by_hardware(
            config, config.stash[SESSION].environment.hardware
        )
        benchmark_storage.resume_comparison(config, config.stash[STATE].comparison)
    except HistoryError as error:
        raise pytest.UsageError(str(error)) from error


def announcement(config: pytest.Config) -> list[str]:
    """What is about to happen: versions, hardware, engines, where results go."""
    session = config.stash[SESSION]
    engines = ", ".join(session.selected_engines)
    if config.option.collectonly:
        return [f"vllmperf: engines {engines}"]
    quick = ["vllmperf: quick: a fifth of the requests; these results are no baseline"] * session.options.quick
    here = session.environment
    shown = [n for n in ("vllm", "torch", "transformers", "lm-eval") if n in here.packages]
    limits = sum(len(t.limits) for t in session.thresholds.tables)
    source = session.options.thresholds_path if session.thresholds.path else "none (no thresholds.toml)"
    return [
        f"vllmperf: {here.hardware}, {here.cores} cores; "
        + ", ".join(f"{name} {here.packages[name]}" for name in shown),
        f"vllmperf: engines {engines}; {limits} limits from {_shown(config, source)}",
        f"vllmperf: report {_shown(config, session.options.report_directory)}; history .benchmarks",
        *quick,
        *_calibrating(session),
        *_killed_run(config),
    ]


def _calibrating(session: Session) -> list[str]:
    if not session.options.judging.calibrate:
        return []
    target = session.options.thresholds_path.name
    return [f"vllmperf: calibrating: {session.launch_budget} launches of each engine, nothing judged; limits: {target}"]


def _killed_run(config: pytest.Config) -> list[str]:
    from pytest_vllmperf.adapters.run_journal import JOURNAL, left_by_a_killed_run

    kept = left_by_a_killed_run(config.stash[SESSION].options.report_directory / JOURNAL)
    if kept is None or config.stash[SESSION].options.resume:
        return []
    return [
        f"vllmperf: an earlier run was killed; its results are kept: vllmperf merge --partial {_shown(config, kept)}"
    ]


def _shown(config: pytest.Config, path: Path | str) -> str:
    if isinstance(path, Path) and path.is_relative_to(config.rootpath):
        return str(path.relative_to(config.rootpath))
    return str(path)
