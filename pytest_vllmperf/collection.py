"""Which tests run for which engine, in which order, and what is checked before the first engine starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_vllmperf.stash import SESSION, STATE

if TYPE_CHECKING:
    from pytest_vllmperf.session import Session

__all__ = ["announcement", "check_before_launch", "engine_of", "order_by_engine", "parametrize"]


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
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("vllm_engine") if callspec else None
    return name if isinstance(name, str) else None


def order_by_engine(items: list[pytest.Item], session: Session) -> None:
    """Put each engine's tests together, whatever pytest or other plugins made of the order.

    Older pytest reorders session parameters by index, random-order plugins by taste; either would
    launch an engine again and again. Tests without engine go first, so that none holds a GPU idle.
    """
    place = {name: number for number, name in enumerate(session.engines, start=1)}
    items.sort(key=lambda item: place.get(engine_of(item) or "", 0))


def check_before_launch(config: pytest.Config) -> None:
    """Check everything the user wrote, and note whether only a part of it was selected.

    Raises:
        pytest.UsageError: Something is wrong, or history cannot be kept.
    """
    from pytest_vllmperf.errors import ConfigError

    run, state = config.stash[SESSION], config.stash[STATE]
    if run.options.engines or config.option.keyword or config.option.markexpr:
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


def _prepare_history(config: pytest.Config) -> None:
    from pytest_vllmperf.adapters import history
    from pytest_vllmperf.errors import HistoryError

    try:
        history.prepare(config)
    except HistoryError as error:
        raise pytest.UsageError(str(error)) from error


def announcement(config: pytest.Config) -> list[str]:
    """What is about to happen: versions, hardware, engines, where results go."""
    session = config.stash[SESSION]
    engines = ", ".join(session.selected_engines)
    if config.option.collectonly:
        return [f"vllmperf: engines {engines}"]
    here = session.environment
    shown = [n for n in ("vllm", "torch", "transformers", "lm-eval") if n in here.packages]
    limits = sum(len(t.limits) for t in session.thresholds.tables)
    source = session.options.thresholds_path if session.thresholds.path else "none (no thresholds.toml)"
    return [
        f"vllmperf: {here.hardware}, {here.cores} cores; "
        + ", ".join(f"{name} {here.packages[name]}" for name in shown),
        f"vllmperf: engines {engines}; {limits} limits from {_shown(config, source)}",
        f"vllmperf: report {_shown(config, session.options.report_directory)}; history .benchmarks",
    ]


def _shown(config: pytest.Config, path: Path | str) -> str:
    if isinstance(path, Path) and path.is_relative_to(config.rootpath):
        return str(path.relative_to(config.rootpath))
    return str(path)
