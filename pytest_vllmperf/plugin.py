"""The pytest plugin: options, hooks, terminal. Inert unless engines are declared and a test uses one.

Everything heavy is imported inside functions: every pytest start on this interpreter pays for this file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllmperf import asked_tasks, collection, hookspecs
from pytest_vllmperf.command_line import is_worker, session_of
from pytest_vllmperf.fixtures import (  # noqa: F401 - fixtures are found in the namespace of a plugin
    vllm_attribute,
    vllm_attribution,
    vllm_beside,
    vllm_capacity,
    vllm_check,
    vllm_compare,
    vllm_comparison,
    vllm_engine,
    vllm_evaluate,
    vllm_evidence,
    vllm_measure,
    vllm_quality_task,
    vllm_record,
    vllm_sleep,
    vllm_start_up,
    vllm_swept,
)
from pytest_vllmperf.junit import judgements, show_as_skipped, turn_into_error
from pytest_vllmperf.options import add_options
from pytest_vllmperf.stash import EVIDENCE, SESSION, STATE, RunState

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session


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
    from pytest_vllmperf.distribution import Distribution, limits_from_controller
    from pytest_vllmperf.errors import ConfigError

    config.stash[STATE] = RunState()
    try:
        config.stash[SESSION] = session_of(config)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
    config.addinivalue_line("markers", "vllm_workload(*names): what this test measures, for --vllmperf-workload.")
    config.addinivalue_line("markers", "vllm_metrics(*names): what a comparing test judges.")
    from pytest_vllmperf.adapters import benchmark_storage

    config.stash[STATE].comparison = benchmark_storage.postpone_comparison(config)
    config.stash[SESSION].limits_sent = limits_from_controller(config)
    if config.pluginmanager.has_plugin("xdist") and not is_worker(config):
        config.pluginmanager.register(Distribution(config), "vllmperf-distribution")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto``, where engines are declared: a worker for each GPU, one on a machine without."""
    if not config.hook.pytest_vllmperf_engines.get_hookimpls() or os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    from pytest_vllmperf.adapters.gpu import list_gpus

    return len(list_gpus()) or 1


# ---------------------------------------------------------------------------- collection


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use an engine once for each, and quality tests once for each task."""
    collection.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put each engine's tests together, last of all plugins."""
    session = config.stash.get(SESSION, None)
    if session is None:
        return
    items[:], idle = collection.split_comparisons(items)
    items[:], left_out = collection.split_by_workload(items, session)
    items[:], done = _resumed(session, items) if session.options.resume else (items, [])
    if idle or done:
        partial = config.stash[STATE].partial
        config.hook.pytest_deselected(items=[*idle, *done])
        config.stash[STATE].partial = partial  # nobody asked for these, or they ran before
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    collection.order_by_engine(items, session)
    config.stash[STATE].uses_engines = any(collection.engines_of(item) for item in items)


def _resumed(session: Session, items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Tests to run, and those an unfinished run has done."""
    from pytest_vllmperf.errors import ConfigError
    from pytest_vllmperf.resuming import take_over

    try:
        return take_over(session, items)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember that the run is partial: limits of unselected tests are then not expected to be judged."""
    if items and (state := items[0].config.stash.get(STATE, None)):
        state.partial = "tests were deselected"


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Count what could not be collected: the rest may run, and must not end green."""
    if report.failed and _running is not None:
        _running.stash[STATE].ordinary_failures += 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Check everything the user wrote before the first engine starts, and before the terminal announces it.

    The controller does so for its workers.
    """
    state = session.config.stash.get(STATE, None)
    if state is None or is_worker(session.config):
        return
    if state.uses_engines:
        asked_tasks.check_before_launch(session.config, session.items)
        collection.check_before_launch(session.config, session.items)
    else:
        collection.resume_comparison(session.config)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say what is about to happen: versions, hardware, engines, workloads, where results go."""
    state = config.stash.get(STATE, None)
    if state is None or not state.uses_engines or config.option.verbose < 0 or is_worker(config):
        return []
    return collection.announcement(config)


# ---------------------------------------------------------------------------- running


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, before anything is launched, a test that this worker must not run."""
    session = item.config.stash.get(SESSION, None)
    if session is not None and is_worker(item.config):
        from pytest_vllmperf.distribution import check_scheduled

        check_scheduled(item, session)
    if session is not None and collection.engines_of(item):
        asked_tasks.refuse_unavailable(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what the test measured and judged ride on its report, through xdist as well."""
    session = item.config.stash.get(SESSION, None)
    names = collection.engines_of(item)
    if session is not None and call.when == "call" and EVIDENCE in item.stash:  # before pytest copies them
        from pytest_vllmperf.sending import junit_properties

        item.user_properties += junit_properties(item.stash[EVIDENCE])
    report = yield
    if session is not None:
        from pytest_vllmperf.redacting import clean_report

        clean_report(report, session.redactor)
    if session is None or not names:
        return report
    evidence: Evidence | None = item.stash.get(EVIDENCE, None)
    if call.when != "call" or evidence is not None:  # at setup already: a test may take its worker down later
        from pytest_vllmperf.sending import Evidence as _Evidence

        gathered = evidence or _Evidence()
        while session.loose:  # measured before any test asked for it
            gathered.add_summary(session.loose.pop(0))
        gathered.engines = {name: report for each in names for name, report in session.launched(each).items()}
        gathered.places = {engine: session.environment for engine in gathered.engines}  # noqa: C420 - it costs
        news = session.sender.news(gathered)
        if call.when == "call" or not news.is_empty:
            report.vllmperf = session.redactor.clean_all(news.to_builtins())  # type: ignore[attr-defined]
        if call.when == "call":
            fate = _fate(session, gathered)
            report.vllmperf_fate = fate  # type: ignore[attr-defined]
            report.user_properties += judgements(gathered.verdicts)
            item.user_properties += judgements(gathered.verdicts)  # JUnit takes those of the last phase
            if fate == "INCONCLUSIVE" and report.passed:
                show_as_skipped(report, gathered.verdicts)
    if is_worker(item.config):
        from pytest_vllmperf.sending import builtins_only

        report.user_properties = builtins_only(report.user_properties)
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Generator[None, None, None]:
    """Gather on the controller what each test sent; JUnit has the report by then, and an INVALID one as an error."""
    yield
    config = _running
    if config is None or is_worker(config) or config.stash.get(SESSION, None) is None:
        return
    fate = getattr(report, "vllmperf_fate", None)
    other_failure = report.failed and fate not in ("FAIL", "INVALID", "INCONCLUSIVE")
    if fate == "INVALID":
        turn_into_error(config, report)
    sent = getattr(report, "vllmperf", None)
    if not other_failure and sent is None:
        return
    from pytest_vllmperf.journaling import take

    take(config.stash[SESSION], config.stash[STATE], report, other_failure=other_failure)


_running: pytest.Config | None = None
"""The config of the running session: pytest_runtest_logreport is not handed one."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note the running config, where engines are declared."""
    global _running  # noqa: PLW0603 - the one hook without access to its config forces it
    _running = session.config if session.config.stash.get(SESSION, None) is not None else None


def pytest_internalerror() -> None:
    """Remember it: with workers an internal error can otherwise end in exit code 0."""
    if _running is not None:
        _running.stash[STATE].internal_error = True


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop whatever still runs, however the session ended."""
    global _running  # noqa: PLW0603 - see pytest_sessionstart
    session = config.stash.get(SESSION, None)
    if session is not None and session.pool_started:
        session.pool.close()
    if _running is config:
        _running = None


# ---------------------------------------------------------------------------- the end


def pytest_vllmperf_sections(config: pytest.Config, report: Report) -> list[Section]:
    """What this package adds to the report itself: choices, comparisons, engines and variants side by side."""
    from pytest_vllmperf.domain.choice_section import choice_sections
    from pytest_vllmperf.domain.comparison_section import comparison_sections
    from pytest_vllmperf.domain.quality_section import quality_sections
    from pytest_vllmperf.domain.side_by_side_section import side_by_side_sections

    engines = [engine.name for engine in report.engines if "-beside-" not in engine.name]
    compared = [(v.against, v.engine) for v in report.verdicts if v.against is not None]
    matrix = [name for name in config.stash[SESSION].engines if name in engines]
    return [
        *choice_sections(matrix, report.summaries, config.stash[SESSION].thresholds.rules),
        *comparison_sections(report.verdicts),
        *side_by_side_sections(engines, report.summaries, compared),
        *quality_sections(report.summaries, report.verdicts),
    ]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Store history and report, and decide the exit code. Outermost, so that history saves what we add."""
    config = session.config
    run = config.stash.get(SESSION, None)
    if run is None:
        return (yield)
    state = config.stash[STATE]
    if run.pool_started:
        _close_pool(run, state)
    if is_worker(config):
        from pytest_vllmperf.distribution import tell_controller

        tell_controller(config)
    elif state.checked and state.uses_engines:
        from pytest_vllmperf.finish import conclude

        state.report = conclude(config, session, run, state)
    elif state.internal_error and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    ended = yield
    if state.unsaved and session.exitstatus != pytest.ExitCode.TESTS_FAILED:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    return ended


def _close_pool(run: Session, state: RunState) -> None:
    """Stop what still runs. That something could not be stopped is told, and must not cost what was measured."""
    from pytest_vllmperf.errors import EngineError

    try:
        with contextlib.suppress(KeyboardInterrupt):  # no more grace was all that it asked for
            run.pool.close()
    except EngineError as error:
        state.ordinary_failures += 1
        run.progress(str(error))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the engine × workload × metric table and the verdict of the run."""
    state = config.stash.get(STATE, None)
    if state is None or state.report is None:
        return
    from pytest_vllmperf.finish import print_report

    limits = config.stash[SESSION].options.thresholds_path
    print_report(terminalreporter, state.report, state, root=config.rootpath, thresholds=limits)
    for problem in state.unsaved:
        terminalreporter.write_line(
            f"! {problem}. All that was measured is in the report; make room, then: vllmperf merge", red=True
        )
