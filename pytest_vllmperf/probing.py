"""From a test that asks for a capacity to its search on the live engine, and from the findings to the report."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vllmperf.capacity import CapacityPlan, FoundCapacity
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.records import LoadRun
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.workload import Workload
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session

__all__ = ["capacity_once", "capacity_summary"]

EXPERIMENT = "capacity"
"""Keeps a capacity apart from an ordinary measurement of the same workload."""


def capacity_once(
    session: Session, engine: EngineHandle, workload: Workload, *, sweep: tuple[float, ...] | None, evidence: Evidence
) -> Summary:
    """The capacity of ``engine`` under ``workload``, searched once in a run; summary and section go into ``evidence``.

    Raises:
        ConfigError: The workload states no service level, or cannot be sent at a rate.
        EngineError, MeasurementError: The engine ended, or a load could not be driven.
    """
    key = (engine.name, workload.name)
    if key not in session.capacities:
        found = _searched(session, engine, workload, sweep)
        session.capacities[key] = (capacity_summary(found, engine=engine.name, model=engine.model_name), found)
    summary, found = session.capacities[key]
    evidence.add_summary(summary)
    section = _section(found, engine.name)
    evidence.sections[section.id] = section
    return summary


def _searched(
    session: Session, engine: EngineHandle, workload: Workload, sweep: tuple[float, ...] | None
) -> FoundCapacity:
    from pytest_vllmperf.capacity import SWEEP, CapacityPlan, find_capacity
    from pytest_vllmperf.domain.status import show
    from pytest_vllmperf.measurement import measure, quick_form

    whole = session.fresh(engine, workload).on(engine.device)
    plan = CapacityPlan(
        workload=quick_form(whole) if session.options.quick else whole,
        sweep=SWEEP if sweep is None else sweep,
        budget_s=session.options.judging.budget_s,
    )

    def drive(asked: Workload) -> tuple[Summary, LoadRun]:
        runs: list[LoadRun] = []
        gpus = session.pool.gpu_uuids(engine.name)
        summary = measure(engine, asked, gpu_uuids=gpus, progress=session.progress, keep=runs.append)
        session.pool.ensure_alive(engine.name, serves=bool(summary.failures))
        return summary, runs[-1]

    session.pool.ensure_alive(engine.name)
    try:
        found = find_capacity(plan, drive, progress=lambda line: session.progress(f"{engine.name}: {line}"))
    finally:
        show(session.progress, None)
    if not session.options.quick:
        return found
    note = f"quick run: {plan.workload.requests} of {whole.requests} requests a probe (--vllmperf-quick), no baseline"
    return replace(found, warnings=(*found.warnings, note))


def capacity_summary(found: FoundCapacity, *, engine: str, model: str) -> Summary:
    """The finding as a Summary that limits can judge: ``capacity_rps``, its interval among the facts."""
    from pytest_vllmperf.domain.capacity_section import knee_of, level_text
    from pytest_vllmperf.domain.summary import Summary, metric_values

    plan, capacity, loads = found.plan, found.capacity, found.summaries
    level = plan.workload.service_level
    assert level is not None  # the plan checked it
    bend = knee_of(found.curve)
    return Summary(
        engine=engine,
        workload=plan.workload.name,
        kind="capacity",
        model=model,
        description=f"{plan.target:.4g} of the requests within {level_text(level)}; {_shape(plan)}",
        requests=sum(load.requests for load in loads),
        completed=sum(load.completed for load in loads),
        failures={},
        duration_s=sum(load.duration_s for load in loads),
        metrics=metric_values(
            distributions={}, scalars={"capacity_rps": capacity.rate}, missing={"capacity_rps": capacity.reason}
        ),
        invalid=found.invalid,
        warnings=found.warnings,
        facts={
            "capacity_rps_low": capacity.low,
            "capacity_rps_high": capacity.high if math.isfinite(capacity.high) else None,
            "confirmed": capacity.confirmed,
            "probes": len(capacity.probes),
            "requests": [len(probe.uses) for probe in capacity.probes],
            "service_level": level_text(level),
            "knee_rps": None if bend is None else bend.rate,
            "rates": [round(probe.rate, 4) for probe in capacity.probes],
            "met": [round(1 - probe.missed, 4) for probe in capacity.probes],
        },
        experiment=EXPERIMENT,
    )


def _shape(plan: CapacityPlan) -> str:
    workload = plan.workload
    answer = f"/{workload.output_tokens}" if workload.output_tokens else ""
    return f"{workload.requests} or more × {workload.prompts.describe(workload.input_tokens)}{answer} tokens a probe"


def _section(found: FoundCapacity, engine: str) -> Section:
    from pytest_vllmperf.domain.capacity_section import capacity_section

    plan = found.plan
    assert plan.workload.service_level is not None  # the plan checked it
    return capacity_section(
        engine,
        plan.workload.name,
        found.capacity,
        curve=found.curve,
        level=plan.workload.service_level,
        target=plan.target,
        description=_shape(plan),
        warnings=(*found.invalid, *found.warnings),
        kind="invalid" if found.invalid else "",
    )
