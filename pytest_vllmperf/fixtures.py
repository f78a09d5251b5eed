"""The fixtures, and nothing else. Expensive things have session scope; judging is done inside the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest

from pytest_vllmperf.stash import EVIDENCE, SESSION

if TYPE_CHECKING:
    from pytest_vllmperf.domain.attribution import Attribution
    from pytest_vllmperf.domain.custom_metrics import Measured
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.evidence import Evidence as OptimisationEvidence
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.workload import Workload
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session


Result = TypeVar("Result")


def _evidence(node: pytest.Item) -> Evidence:
    from pytest_vllmperf.sending import Evidence

    return node.stash.setdefault(EVIDENCE, Evidence())


@pytest.fixture(scope="session")
def vllm_engine(request: pytest.FixtureRequest) -> Iterator[EngineHandle]:
    """A live engine, once for each engine of the matrix; launched once in a run.

    Session scope because a start takes half a minute; tests are ordered so that each engine's stand
    together, and the engine is stopped before the next one starts (they may need the same GPU).
    """
    from pytest_vllmperf.errors import EngineUnavailable, VllmPerfError

    session = request.config.stash[SESSION]
    name: str = request.param
    try:
        if session.launch_budget > 1:
            from pytest_vllmperf.replicating import launched_often

            handle = launched_often(session, name, request.session.items)
        else:
            handle = session.pool.acquire(name)
    except EngineUnavailable as error:
        if session.options.require_gpu:
            pytest.fail(f"{error} (a GPU is required here: --vllmperf-require-gpu)", pytrace=False)
        pytest.skip(str(error))
    except VllmPerfError as error:
        pytest.fail(str(error), pytrace=False)
    session.prove(handle)
    yield handle
    session.pool.release(name)


@pytest.fixture
def vllm_measure(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Callable[[str | Workload], Summary]:
    """``vllm_measure("burst")`` drives a workload against the engine and returns its Summary.

    A workload is measured once for each engine: tests that ask for the same one look at the same
    measurement from different sides.
    """
    session = request.config.stash[SESSION]

    def measure_once(workload: str | Workload) -> Summary:
        asked = session.workload(workload)
        _skip_unselected(session, asked.name)
        key = (vllm_engine.name, asked.name)
        if key not in session.measured:
            session.pool.ensure_alive(vllm_engine.name)
            session.measured[key] = session.measure_on(vllm_engine, asked)
        summary = _taken(request.node, session.measured[key])
        if summary.failures:  # was it the engine? Then its own last words say more than the client's
            session.pool.ensure_alive(vllm_engine.name, serves=True)
        return summary

    return _plain_errors(measure_once)


@pytest.fixture
def vllm_capacity(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Callable[..., Summary]:
    """``vllm_capacity("chat")`` searches the largest request rate that keeps the workload's service level.

    The Summary's ``capacity_rps`` is the rate at which 99 % of the requests still meet ``Workload.service_level``;
    limits judge it by its interval. Each probe is an open loop of the workload's ``requests``, or of more where a queue
    needs longer to build up; the search starts at its ``request_rate``, or without one below what a closed loop at
    ``max_concurrency`` takes. There are 12 loads at most; ``sweep`` names shares of the capacity measured besides, for
    the throughput-latency curve in the report.
    """
    session = request.config.stash[SESSION]

    def search_once(workload: str | Workload, *, sweep: tuple[float, ...] | None = None) -> Summary:
        from pytest_vllmperf.probing import capacity_once

        asked = session.workload(workload)
        _skip_unselected(session, asked.name)
        return capacity_once(session, vllm_engine, asked, sweep=sweep, evidence=_evidence(request.node))

    return _plain_errors(search_once)


@pytest.fixture
def vllm_start_up(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Summary:
    """How the engine's launch went: ``time_to_ready`` and ``first_request_ttft``."""
    from pytest_vllmperf.measurement import start_up_summary

    _skip_unselected(request.config.stash[SESSION], "startup")
    session = request.config.stash[SESSION]
    pooled = session.measured.get((vllm_engine.name, "startup"))
    return _taken(request.node, pooled or start_up_summary(vllm_engine))


@pytest.fixture
def vllm_sleep(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Callable[..., Summary]:
    """``vllm_sleep(level=1)`` lets the engine sleep and wakes it up: ``time_to_sleep``, ``time_to_wake``, memory."""

    def sleep_once(level: int = 1) -> Summary:
        from pytest_vllmperf.measurement import sleep_summary

        _skip_unselected(request.config.stash[SESSION], "sleep")
        return _taken(request.node, sleep_summary(vllm_engine, level=level))

    return _plain_errors(sleep_once)


@pytest.fixture
def vllm_beside(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Iterator[Callable[[str], EngineHandle]]:
    """``vllm_beside("other")`` launches another engine of the matrix beside the test's own, until the test ends.

    It is a launch of its own, named ``other-beside-one``. Where both need the same GPU, put the first to sleep before:
    ``vllm_engine.sleep()``; then ``other.sleep()`` and ``vllm_engine.wake()`` switch back without a restart.
    """
    from dataclasses import replace

    from pytest_vllmperf.errors import EngineError

    session = request.config.stash[SESSION]
    launched: list[str] = []

    def launch(name: str) -> EngineHandle:
        __tracebackhide__ = True
        if name not in session.engines:
            pytest.fail(f"engine {name!r} is not in the matrix; known: {', '.join(session.engines)}", pytrace=False)
        config = replace(session.engines[name], name=f"{name}-beside-{vllm_engine.name}")
        try:
            session.pool.add(config)
            launched.append(config.name)
            session.pool.renew(config.name)
            return session.pool.acquire(config.name)
        except EngineError as error:
            pytest.fail(str(error), pytrace=False)

    yield launch
    for name in launched:
        session.pool.release(name)


@pytest.fixture
def vllm_record(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Callable[..., Summary]:
    """``vllm_record(wake_time=0.8)`` takes what a test measured itself and returns it as a Summary for ``vllm_check``.

    Metrics are those that ``pytest_vllmperf_metrics`` defines: one number each, or all samples of a distribution.
    """
    session = request.config.stash[SESSION]

    def record(**values: Measured) -> Summary:
        from pytest_vllmperf.domain.custom_metrics import recorded_summary

        engine, model = vllm_engine.name, vllm_engine.model_name
        summary = recorded_summary(session.metrics, engine=engine, model=model, values=values)
        _skip_unselected(session, summary.workload)
        return _taken(request.node, summary)

    return _plain_errors(record)


@pytest.fixture
def vllm_evidence(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> tuple[OptimisationEvidence, ...]:
    """Which optimisations are active on the engine right now, each with its proof."""
    return request.config.stash[SESSION].prove(vllm_engine).evidence


@pytest.fixture
def vllm_evaluate(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Callable[[str | QualityTask], Summary]:
    """``vllm_evaluate("gsm8k")`` lets the engine answer a quality task and returns its Summary."""
    session = request.config.stash[SESSION]

    def evaluate_once(task: str | QualityTask) -> Summary:
        from pytest_vllmperf.errors import TaskUnavailable

        asked = session.quality_task(task)
        _skip_unselected(session, asked.name)
        _skip_twin(vllm_engine)
        key = (vllm_engine.name, asked.name)
        if key not in session.measured:
            session.pool.ensure_alive(vllm_engine.name)
            try:
                session.measured[key] = session.measure_on(vllm_engine, asked)
            except TaskUnavailable as error:
                session.pool.ensure_alive(vllm_engine.name)  # a dead engine gives no log-likelihoods either
                if asked.unavailable == "skip":
                    pytest.skip(str(error))
                raise
        summary = _taken(request.node, session.measured[key])
        if summary.failures:
            session.pool.ensure_alive(vllm_engine.name, serves=True)
        return summary

    return _plain_errors(evaluate_once)


@pytest.fixture
def vllm_swept(request: pytest.FixtureRequest, vllm_engine: EngineHandle) -> Summary:
    """The Summary of each workload, or quality task, that ``[[sweep]]`` in the limits file lists for the engine."""
    name: str = request.param
    asks = "vllm_evaluate" if name in request.config.stash[SESSION].tasks else "vllm_measure"
    summary: Summary = request.getfixturevalue(asks)(name)
    return summary


@pytest.fixture
def vllm_quality_task(request: pytest.FixtureRequest) -> QualityTask:
    """Each declared quality task in turn."""
    return request.config.stash[SESSION].quality_task(request.param)


@pytest.fixture
def vllm_check(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``vllm_check(summary, "ttft_mean", …)`` judges metrics against ``thresholds.toml``.

    A missed limit fails the test; a broken measurement makes it INVALID; a metric without a limit is
    recorded and shown. Of a load measurement the ``error_rate`` is always judged, against 0 where the
    file says nothing: latencies of the survivors alone are no result.
    """
    session = request.config.stash[SESSION]

    def check(summary: Summary, *metrics: str) -> None:
        __tracebackhide__ = True
        from pytest_vllmperf.domain.gate import failure_message, judge_all
        from pytest_vllmperf.sending import Evidence

        subject, launches = session.subject(summary), session.launch_budget
        verdicts = judge_all(session.judged_by, subject, summary, metrics, launches=launches)
        _evidence(request.node).add(Evidence(verdicts=verdicts))
        message = failure_message(summary, verdicts, inconclusive_fails=session.thresholds.inconclusive == "fail")
        if message is not None:
            pytest.fail(message, pytrace=False)

    return check


@pytest.fixture(scope="session")
def vllm_comparison(request: pytest.FixtureRequest) -> str:
    """Each comparison asked for by ``--vllmperf-compare`` in turn, as ``BASE:CANDIDATE``."""
    spec: str = request.param
    return spec


@pytest.fixture
def vllm_compare(request: pytest.FixtureRequest, vllm_comparison: str) -> Callable[[str], None]:
    """``vllm_compare("burst")`` judges the candidate against the baseline on one workload, task or ``startup``.

    The launches are made once, at the first use, for all tests of the comparison: what they measure is known from
    their parameter ``workload``, marker ``vllm_workload`` or ``vllm_quality_task``, and what is judged from their
    marker ``vllm_metrics`` (by default output throughput, TTFT and TPOT; accuracy; time to ready).
    """
    from pytest_vllmperf.comparing import compared_once, told

    session, items = request.config.stash[SESSION], request.session.items

    def check(asked: str | Workload | QualityTask) -> None:
        __tracebackhide__ = True
        name = asked if isinstance(asked, str) else asked.name
        _skip_unselected(session, name)
        message = told(session, vllm_comparison, name, request.node, _evidence(request.node))
        if message is not None:
            pytest.fail(message, pytrace=False)

    def run(asked: str | Workload | QualityTask) -> None:
        __tracebackhide__ = True
        compared_once(session, vllm_comparison, items, config=request.config, evidence=_evidence(request.node))
        check(asked)

    return _plain_errors(run)


@pytest.fixture(scope="session")
def vllm_attribution(request: pytest.FixtureRequest) -> str:
    """Each attribution asked for by ``--vllmperf-attribute`` in turn, as ``BASE:CANDIDATE``."""
    spec: str = request.param
    return spec


@pytest.fixture
def vllm_attribute(request: pytest.FixtureRequest, vllm_attribution: str) -> Callable[..., Attribution]:
    """``vllm_attribute("burst")`` finds out which setting does what to each metric, and returns the effects.

    Takes workloads and quality tasks, by name; without any, those of ``--vllmperf-workload``, else ``burst``. The
    launches are planned, timed and bounded by ``--vllmperf-budget``; the findings become a section of the report.
    """
    from pytest_vllmperf.attributing import attributed

    session = request.config.stash[SESSION]

    def find_out(*workloads: str, metrics: tuple[str, ...] = ()) -> Attribution:
        asked = workloads or session.options.workloads or ("burst",)
        return attributed(session, vllm_attribution, asked, metrics=metrics, evidence=_evidence(request.node))

    return _plain_errors(find_out)


def _skip_unselected(session: Session, workload: str) -> None:
    if not session.selects(workload):
        pytest.skip(
            f"workload {workload!r} is not selected (--vllmperf-workload={','.join(session.options.workloads)})"
        )


def _skip_twin(engine: EngineHandle) -> None:
    from pytest_vllmperf.adapters.model_files import twin_of

    if (of := twin_of(engine.config.model)) is not None:
        pytest.skip(f"{engine.config.model} is a shape twin of {of}: its weights are dummies, its answers mean nothing")


def _taken(node: pytest.Item, summary: Summary) -> Summary:
    """Note ``summary`` as evidence of the running test: what was measured must reach the report."""
    _evidence(node).add_summary(summary)
    return summary


def _plain_errors(function: Callable[..., Result]) -> Callable[..., Result]:
    """Turn this package's own errors into failures without a traceback: their messages are complete.

    In an async test the work is done in a thread, as an event loop runs in this one already. The loop waits: while
    something is measured nothing else should happen here. ``await asyncio.to_thread(vllm_measure, …)`` lets it run on.
    """

    def guarded(*asked: object, **named: object) -> Result:
        __tracebackhide__ = True
        from pytest_vllmperf.errors import VllmPerfError

        try:
            if not _in_event_loop():
                return function(*asked, **named)
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(1, thread_name_prefix="vllmperf") as thread:
                return thread.submit(function, *asked, **named).result()
        except VllmPerfError as error:
            pytest.fail(str(error), pytrace=False)

    return guarded


def _in_event_loop() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
