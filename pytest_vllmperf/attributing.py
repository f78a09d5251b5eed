"""From a test that asks for an attribution to its plan, and from the findings to the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vllmperf.attribution import Attributed, AttributionPlan
    from pytest_vllmperf.domain.attribution import Attribution, Wanted
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.experiment import Asked, Launch
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session

__all__ = ["attributed", "attribution_plan"]

_LOAD = ("output_throughput", "ttft_mean", "tpot_mean", "device_memory_peak", "host_memory_peak")
_QUALITY = ("accuracy",)
_START_UP = ("time_to_ready",)


def attributed(
    session: Session, name: str, asked: Sequence[str], *, metrics: Sequence[str], evidence: Evidence
) -> Attribution:
    """Take the engines of ``name`` apart over ``asked``; base, candidate and the findings go into ``evidence``.

    Raises:
        VllmPerfError: An engine cannot be launched or measured, or something impossible is asked.
    """
    from pytest_vllmperf.attribution import take_apart
    from pytest_vllmperf.comparison import pooled_launches

    plan = attribution_plan(session, name, asked, metrics=metrics)
    for engine in session.engines:
        session.pool.renew(engine)  # none is live here; with workers, one may be
    launches: list[Launch] = []
    try:
        found = take_apart(plan, session.launcher, progress=session.progress, keep=launches.append)
    finally:
        for summary in pooled_launches(launches, experiment=name):
            evidence.add_summary(summary)
    section = _section(found)
    evidence.sections[section.id] = section
    for sentence in section.sentences:
        session.progress(f"{name}: {sentence}")
    return found.result


def attribution_plan(
    session: Session, name: str, asked: Sequence[str], *, metrics: Sequence[str] = ()
) -> AttributionPlan:
    """What ``--vllmperf-attribute`` launches and measures.

    Raises:
        ConfigError: A name is unknown, or a metric is not one value of a run.
    """
    from pytest_vllmperf.attribution import AttributionPlan

    base, candidate = (session.engines[side].on(session.environment.device) for side in name.split(":"))
    things = [_asked(session, one) for one in asked if one != "startup"]
    return AttributionPlan(
        base=base,
        candidate=candidate,
        asked=tuple(things),
        wanted=tuple(_wanted(session, things, metrics)),
        budget_s=session.options.judging.budget_s,
    )


def _asked(session: Session, name: str) -> Asked:
    return session.quality_task(name) if name in session.tasks else session.workload(name)


def _wanted(session: Session, asked: Sequence[Asked], metrics: Sequence[str]) -> list[Wanted]:
    """Each metric of each thing asked, and how long a start takes; the tolerances are the catalogue's."""
    from pytest_vllmperf.domain.attribution import Wanted
    from pytest_vllmperf.domain.metrics import judgeable_metric
    from pytest_vllmperf.domain.quality import QualityTask

    gpu = session.environment.device == "gpu"
    named = {what.name: metrics or (_QUALITY if isinstance(what, QualityTask) else _LOAD) for what in asked}
    named["startup"] = () if metrics else _START_UP
    return [
        Wanted(workload=workload, metric=metric, tolerance=judgeable_metric(metric).tolerance)
        for workload, wanted in named.items()
        for metric in wanted
        if gpu or metric != "device_memory_peak"
    ]


def _section(found: Attributed) -> Section:
    from pytest_vllmperf.domain.attribution_section import attribution_section
    from pytest_vllmperf.domain.metrics import metric
    from pytest_vllmperf.domain.units import format_quantity

    launches = [
        (
            str(run.round + 1),
            found.engines[run.point].name,
            {
                f"{metric(name).label}, {workload}": format_quantity(value, unit=metric(name).unit)
                for (workload, name), value in run.values.items()
            },
        )
        for run in found.runs
    ]
    return attribution_section(
        found.plan.name, found.result, factors=found.factors, launches=launches, warnings=found.warnings
    )
