"""The pytest plugin: options, hooks, terminal. Inert unless engines are declared and a test uses one.

Everything heavy is imported inside functions: every pytest start on this interpreter pays for this file.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllmperf import hookspecs
from pytest_vllmperf.fixtures import (  # noqa: F401 - fixtures are found in the namespace of a plugin
    EVIDENCE,
    SESSION,
    vllm_check,
    vllm_engine,
    vllm_evaluate,
    vllm_measure,
    vllm_quality_task,
    vllm_start_up,
)
from pytest_vllmperf.options import add_options, is_worker, session_of

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.session import Evidence, Session

_STATE = pytest.StashKey["_RunState"]()


class _RunState:
    """What the hooks themselves must remember of a run."""

    def __init__(self) -> None:
        self.uses_engines = False
        self.checked = False
        self.partial: str | None = None
        self.ordinary_failures = 0
        self.internal_error = False
        self.report: Report | None = None


# ---------------------------------------------------------------------------- options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options; all of them are inert where no engines are declared."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the extension points."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Read the matrix, where one is declared. Touches no GPU, no network and no directory."""
    config.addinivalue_line("markers", "vllm_engine(*names): run this test for these engines only (default: all).")
    if not config.hook.pytest_vllmperf_engines.get_hookimpls():
        return
    from pytest_vllmperf.errors import ConfigError

    config.stash[_STATE] = _RunState()
    try:
        config.stash[SESSION] = session_of(config)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


# ---------------------------------------------------------------------------- collection


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use an engine once for each, and quality tests once for each task."""
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


def _engine_of(item: pytest.Item) -> str | None:
    """The engine a test runs on; None for a test without one."""
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("vllm_engine") if callspec else None
    return name if isinstance(name, str) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put each engine's tests together, whatever pytest or other plugins made of the order.

    Older pytest reorders session parameters by index, random-order plugins by taste; either would
    launch an engine again and again. Tests without engine go first, so that none holds a GPU idle.
    """
    session = config.stash.get(SESSION, None)
    if session is None:
        return
    place = {name: number for number, name in enumerate(session.engines, start=1)}
    items.sort(key=lambda item: place.get(_engine_of(item) or "", 0))
    config.stash[_STATE].uses_engines = any(_engine_of(item) for item in items)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember that the run is partial: limits of unselected tests are then not expected to be judged."""
    if items and (state := items[0].config.stash.get(_STATE, None)):
        state.partial = "tests were deselected"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Check everything the user wrote before the first engine starts, and before the terminal announces it."""
    from pytest_vllmperf.errors import ConfigError

    config = session.config
    run = config.stash.get(SESSION, None)
    if run is None or not config.stash[_STATE].uses_engines:
        return
    state = config.stash[_STATE]
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
    state.checked = not config.option.collectonly
    if not is_worker(config) and not config.option.collectonly:
        _prepare_history(config)


def _prepare_history(config: pytest.Config) -> None:
    from pytest_vllmperf.adapters import history
    from pytest_vllmperf.errors import HistoryError

    try:
        history.prepare(config)
    except HistoryError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say what is about to happen: versions, hardware, engines, workloads, where results go."""
    session = config.stash.get(SESSION, None)
    if session is None or not config.stash[_STATE].uses_engines or config.option.verbose < 0:
        return []
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


# ---------------------------------------------------------------------------- running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what the test measured and judged ride on its report, through xdist as well."""
    report = yield
    session = item.config.stash.get(SESSION, None)
    name = _engine_of(item)
    if session is None or name is None:
        return report
    evidence: Evidence | None = item.stash.get(EVIDENCE, None)
    if call.when == "setup":
        report.vllmperf_setup = name  # type: ignore[attr-defined]
    if call.when == "teardown" or (call.when == "call" and evidence is not None):
        from pytest_vllmperf.session import Evidence as _Evidence

        gathered = evidence or _Evidence()
        if session.pool_started:
            gathered.engines = {e.name: e for e in session.pool.reports() if e.name == name}
        report.vllmperf = gathered.to_builtins()  # type: ignore[attr-defined]
        if call.when == "call":
            report.vllmperf_fate = _fate(session, gathered)  # type: ignore[attr-defined]
    return report


def _fate(session: Session, evidence: Evidence) -> str | None:
    """What became of a test by its judgements: None for an ordinary pass or failure."""
    from pytest_vllmperf.domain.thresholds import Outcome

    outcomes = {v.outcome for v in evidence.verdicts if not v.built_in or v.outcome is not Outcome.PASS}
    if Outcome.FAIL in outcomes:
        return "FAIL"
    for outcome in (Outcome.INVALID, Outcome.INCONCLUSIVE):
        if outcome in outcomes:
            return outcome.name
    if evidence.verdicts and outcomes <= {Outcome.NOT_JUDGED}:
        return "RECORDED"
    return None


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Give INVALID, INCONCLUSIVE and RECORDED words of their own."""
    fate = getattr(report, "vllmperf_fate", None)
    if report.when != "call" or fate is None:
        return None
    if fate == "INVALID":
        return "error", "V", ("INVALID", {"red": True, "bold": True})
    if fate == "INCONCLUSIVE":
        category = "failed" if report.failed else "inconclusive"
        return category, "?", ("INCONCLUSIVE", {"yellow": True})
    if fate == "RECORDED" and report.passed:
        return "recorded", "r", ("RECORDED", {"yellow": True})
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather on the controller what each test sent."""
    config = _running
    if config is None or is_worker(config) or config.stash.get(SESSION, None) is None:
        return
    fate = getattr(report, "vllmperf_fate", None)
    if report.failed and fate not in ("FAIL", "INVALID", "INCONCLUSIVE"):
        config.stash[_STATE].ordinary_failures += 1
    sent = getattr(report, "vllmperf", None)
    if sent is not None:
        from pytest_vllmperf.session import Evidence

        config.stash[SESSION].evidence.add(Evidence.from_builtins(sent))


_running: pytest.Config | None = None
"""The config of the running session: pytest_runtest_logreport is not handed one."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note the running config, where engines are declared."""
    global _running  # noqa: PLW0603 - the one hook without access to its config forces it
    _running = session.config if session.config.stash.get(SESSION, None) is not None else None


def pytest_internalerror() -> None:
    """Remember it: with workers an internal error can otherwise end in exit code 0."""
    if _running is not None:
        _running.stash[_STATE].internal_error = True


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop whatever still runs, however the session ended."""
    global _running  # noqa: PLW0603 - see pytest_sessionstart
    session = config.stash.get(SESSION, None)
    if session is not None and session.pool_started:
        session.pool.close()
    if _running is config:
        _running = None


# ---------------------------------------------------------------------------- the end


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Store history and report, and decide the exit code. Outermost, so that history saves what we add."""
    config = session.config
    run = config.stash.get(SESSION, None)
    if run is None:
        return (yield)
    if run.pool_started:
        run.pool.close()
    state = config.stash[_STATE]
    if is_worker(config) or not state.checked:
        return (yield)
    from pytest_vllmperf.finish import conclude

    state.report = conclude(config, session, run, state)
    return (yield)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the engine × workload × metric table and the verdict of the run."""
    state = config.stash.get(_STATE, None)
    if state is None or state.report is None:
        return
    from pytest_vllmperf.finish import print_report

    print_report(terminalreporter, state.report, config.stash[SESSION].options.report_directory, config.rootpath)
