"""From the comparing tests of a session to one comparison: what it measures and judges, and what each test says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_vllmperf.collection import again, comparison_of, workloads_of
from pytest_vllmperf.errors import ConfigError, VllmPerfError

if TYPE_CHECKING:
    import pytest

    from pytest_vllmperf.comparison import Comparison
    from pytest_vllmperf.domain.engine import Device
    from pytest_vllmperf.domain.thresholds import Limit
    from pytest_vllmperf.experiment import Asked, Launch
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session

__all__ = ["compared_once", "comparison_plan", "told"]

_START_UP = "startup"


def compared_once(
    session: Session, name: str, items: Sequence[pytest.Item], *, config: pytest.Config, evidence: Evidence
) -> None:
    """Make the launches of comparison ``name``, at its first test; later ones find the result, or the same error.

    What was measured goes into ``evidence``, even where the comparison breaks off.

    Raises:
        VllmPerfError: An engine cannot be launched or measured, or a test asks for something impossible.
    """
    from pytest_vllmperf.comparison import compare, pooled_launches
    from pytest_vllmperf.estimate import pair_seconds

    if name not in session.comparisons:
        launches: list[Launch] = []
        try:
            plan = comparison_plan(session, name, items)
            for engine in session.engines:
                session.pool.renew(engine)  # none is live here; with workers, one may be
            session.progress(plan.announce(pair_seconds(plan, config, device=session.environment.device)))
            compared = compare(plan, session.launcher, progress=session.progress, keep=launches.append)
            session.comparisons[name] = compared
        except VllmPerfError as error:
            session.comparisons[name] = error
        finally:
            for summary in pooled_launches(launches, experiment=name):
                evidence.add_summary(summary)
    found = session.comparisons[name]
    if isinstance(found, VllmPerfError):
        raise found


def comparison_plan(session: Session, name: str, items: Iterable[pytest.Item]) -> Comparison:
    """What the selected tests of comparison ``name`` measure and judge, together.

    Raises:
        ConfigError: A test does not tell what it measures, or names a metric that cannot be compared.
    """
    from pytest_vllmperf.comparison import Comparison
    from pytest_vllmperf.domain.comparison import COMPARED
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.domain.thresholds import Subject, resolve_tolerance

    baseline, candidate = (session.engines[side] for side in name.split(":"))
    if baseline == candidate:
        candidate = replace(candidate, name=again(candidate.name))
    asked: dict[str, Asked] = {}
    metrics: dict[str, dict[str, None]] = {}
    for item in items:
        if comparison_of(item) != name:
            continue
        for workload in _measured_by(item):
            what = _asked(session, workload)
            if what is not None:
                asked[workload] = what
            kind = "startup" if what is None else "quality" if isinstance(what, QualityTask) else "load"
            wanted = _metrics(item) or COMPARED[kind]
            metrics.setdefault(workload, {}).update(dict.fromkeys(_measurable(wanted, session.environment.device)))
    limits: dict[str, tuple[Limit, ...]] = {}
    for workload, names in metrics.items():
        subject = Subject(
            hardware=session.environment.hardware,
            model=candidate.model_name,
            engine=candidate.name,
            workload=workload,
        )
        limits[workload] = tuple(resolve_tolerance(session.thresholds, subject, metric) for metric in names)
    return Comparison(
        baseline=baseline,
        candidate=candidate,
        asked=tuple(asked.values()),
        limits=limits,
        pairs=session.options.judging.pairs,
        confirm=session.options.judging.confirm,
    )


def _measured_by(item: pytest.Item) -> list[str]:
    names = sorted(workloads_of(item))
    if not names:
        raise ConfigError(
            f"{item.nodeid} compares engines and does not tell what it measures before it runs: give it a parameter "
            '"workload", a marker such as @pytest.mark.vllm_workload("burst"), or the fixture vllm_quality_task'
        )
    return names


def _asked(session: Session, name: str) -> Asked | None:
    """The workload or task of that name; None for the start-up, which needs no asking."""
    if name == _START_UP:
        return None
    return session.quality_task(name) if name in session.tasks else session.workload(name)


def _metrics(item: pytest.Item) -> tuple[str, ...]:
    marker = item.get_closest_marker("vllm_metrics")
    return tuple(marker.args) if marker else ()


def _measurable(metrics: Sequence[str], device: Device) -> list[str]:
    """Without a GPU there is no device memory to compare; everything else that is missing makes a verdict INVALID."""
    return [name for name in metrics if device == "gpu" or name != "device_memory_peak"]


def told(session: Session, name: str, workload: str, item: pytest.Item, evidence: Evidence) -> str | None:
    """Note the verdicts a comparing test asks for, and say what it fails with; None where it does not.

    Raises:
        ConfigError: The test measures something it did not tell before.
    """
    from pytest_vllmperf.domain.gate import comparison_message

    compared = session.comparisons[name]
    assert not isinstance(compared, VllmPerfError)  # compared_once has raised it
    wanted = _metrics(item)
    verdicts = [
        v for v in compared.verdicts if v.workload == workload and (not wanted or v.metric in wanted or v.built_in)
    ]
    if not verdicts:
        raise ConfigError(
            f"{item.nodeid} compares {workload!r}, which its parameters and markers do not name: the launches were "
            f'made without it; add @pytest.mark.vllm_workload("{workload}")'
        )
    evidence.verdicts += verdicts
    return comparison_message(verdicts, inconclusive_fails=session.thresholds.inconclusive == "fail")
