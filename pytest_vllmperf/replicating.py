"""From the tests of one engine to its launches: what to measure on each, and when the limits are decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_vllmperf.collection import engine_of, workloads_of

if TYPE_CHECKING:
    import pytest

    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.session import Session

__all__ = ["launched_often", "workloads_to_replicate"]


def launched_often(session: Session, name: str, items: Sequence[pytest.Item]) -> EngineHandle:
    """Launch engine ``name`` until its limits are decided or the budget is used up; the last launch is left running.

    Every measurement so far goes into ``session.measured``, where tests find it pooled; those on one launch only (a
    workload nobody told of before, answers) follow on the live one.

    Raises:
        VllmPerfError: A launch or a measurement failed; what was measured before is kept.
    """
    from pytest_vllmperf.errors import VllmPerfError
    from pytest_vllmperf.replication import launch_until_decided

    asked = [session.workload(workload) for workload in workloads_to_replicate(session, name, items)]
    budget = session.launch_budget

    def keep(found: Mapping[str, Summary]) -> None:
        session.measured.update({(name, key): summary for key, summary in found.items()})

    try:
        return launch_until_decided(
            name,
            asked,
            launcher=session.launcher,
            launches=budget,
            undecided=lambda found: _undecided(session, found),
            keep=keep,
            progress=session.progress,
        )
    except VllmPerfError:
        session.loose += [summary for (engine, _), summary in session.measured.items() if engine == name]
        raise


def workloads_to_replicate(session: Session, name: str, items: Iterable[pytest.Item]) -> tuple[str, ...]:
    """Workloads that the engine's tests measure, by their markers and parameters.

    A test may measure without telling before: then also those that a limit names for this engine.
    """
    from pytest_vllmperf.domain.thresholds import Subject, applicable, is_glob

    mine = [item for item in items if engine_of(item) == name and "vllm_measure" in getattr(item, "fixturenames", ())]
    told = {workload for item in mine for workload in workloads_of(item)}
    if any(not workloads_of(item) for item in mine):
        engine = session.engines[name]
        hardware = session.environment.hardware
        tables = applicable(session.thresholds, hardware=hardware, models={name: engine.model_name})
        named = {t.match.workload for t, _ in tables if t.match.workload and not is_glob(t.match.workload)}
        told |= {
            workload
            for workload in named
            for t, _ in tables
            if t.match.specificity(Subject(hardware=hardware, model=engine.model_name, engine=name, workload=workload))
        }
    return tuple(w for w in session.workloads if w in told and session.selects(w))


def _undecided(session: Session, found: Mapping[str, Summary]) -> bool:
    """Whether another launch may still decide a limit that applies to what was measured."""
    from pytest_vllmperf.domain.levels import judge_level, undecided
    from pytest_vllmperf.domain.thresholds import resolve

    budget = session.launch_budget
    if session.options.judging.calibrate:
        return True  # every launch tells more about the noise
    metrics = {metric for table in session.thresholds.tables for metric in table.limits}
    return any(
        undecided(judge_level(summary, metric, limit, launches=budget), launches=budget)
        for summary in found.values()
        for metric in metrics
        if metric in summary.metrics
        and (limit := resolve(session.thresholds, session.subject(summary), metric)) is not None
    )
