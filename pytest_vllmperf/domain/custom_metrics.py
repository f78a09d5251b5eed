"""Metrics of a user's own: defined by ``pytest_vllmperf_metrics``, judged and stored like every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Union

from pytest_vllmperf.domain.metrics import Better, metric, register_metric
from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.domain.summary import MetricValue, Summary, metric_values
from pytest_vllmperf.errors import UnknownMetric

__all__ = ["CustomMetric", "Measured", "recorded_summary", "register", "with_custom_metrics"]

Measured = Union[float, int, Sequence[float], None]
"""One value of a scalar, all samples of a distribution, or None where it cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomMetric:
    """A metric that is not in the catalogue.

    Args:
        name: As written in ``thresholds.toml``; of a distribution its statistics are, ``<name>_p99`` and so on.
        unit: Base unit of its values: ``s``, ``tok/s``, ``req/s``, ``B``, ``ratio`` or ``count``.
        better: Direction of an improvement.
        formula: How it is computed, in words; shown wherever the metric is explained.
        tolerance: Change a comparison accepts by default, as a ratio.
        distribution: True when it has many samples.
        compute: Gives its value for each load measurement, from the raw records of the requests. Without it the value
            comes from a test, by ``vllm_record``.
        workload: What stands in the workload's place where a test records it.
    """

    name: str
    unit: str
    better: Better
    formula: str
    tolerance: float = 0.05
    distribution: bool = False
    compute: Callable[[LoadRun], Measured] | None = None
    workload: str = "custom"


def register(metrics: Sequence[CustomMetric]) -> None:
    """Put them in the catalogue.

    Raises:
        UnknownMetric: A name is taken by another definition.
    """
    for own in metrics:
        register_metric(
            name=own.name,
            unit=own.unit,
            better=own.better,
            formula=own.formula,
            tolerance=own.tolerance,
            distribution=own.distribution,
        )


def with_custom_metrics(summary: Summary, metrics: Sequence[CustomMetric], run: LoadRun | None) -> Summary:
    """``summary`` with what ``metrics`` compute from ``run``. One that fails is missing, and says why."""
    found: dict[str, MetricValue] = {}
    for own in metrics:
        if own.compute is None or run is None:
            continue
        try:
            found |= _values({own.name: own.compute(run)})
        except Exception as error:  # noqa: BLE001 - somebody else's code must not lose what was measured
            why = f"its compute raised {type(error).__name__}: {error}"
            found |= _values({own.name: None}, missing={own.name: why})
    return replace(summary, metrics={**summary.metrics, **found}) if found else summary


def recorded_summary(
    metrics: Sequence[CustomMetric], *, engine: str, model: str, values: Mapping[str, Measured]
) -> Summary:
    """A Summary of values that a test measured itself.

    Raises:
        UnknownMetric: A name is not one of ``metrics``, a value does not fit, or they belong to different workloads.
    """
    known = {own.name: own for own in metrics}
    for name in values:
        if name not in known:
            raise UnknownMetric(
                f"metric {name!r} cannot be recorded: pytest_vllmperf_metrics defines {', '.join(known) or 'none'}"
            )
    workload, *others = sorted({known[name].workload for name in values}) or ["custom"]
    if others:
        raise UnknownMetric(f"metrics of {workload!r} and {', '.join(map(repr, others))}: record them apart")
    return Summary(
        engine=engine,
        workload=workload,
        kind="custom",
        model=model,
        description="recorded by a test",
        requests=0,
        completed=0,
        failures={},
        duration_s=0.0,
        metrics=_values(values),
        invalid=(),
        warnings=(),
        facts={},
    )


def _values(values: Mapping[str, Measured], missing: Mapping[str, str] | None = None) -> dict[str, MetricValue]:
    distributions: dict[str, Sequence[float]] = {}
    scalars: dict[str, float | None] = {}
    for name, value in values.items():
        if metric(name).distribution:
            if isinstance(value, (int, float)):
                raise UnknownMetric(f"metric {name!r} is a distribution: give all of its samples, not {value!r}")
            distributions[name] = [float(sample) for sample in value or ()]
        else:
            scalars[name] = None if value is None else _single(name, value)
    reasons = dict.fromkeys(values, "not recorded")
    return metric_values(distributions=distributions, scalars=scalars, missing={**reasons, **(missing or {})})


def _single(name: str, value: object) -> float:
    """One number, also where it comes as one of numpy or Decimal."""
    try:
        return float(value)  # type: ignore[arg-type] # that is what is tried
    except (TypeError, ValueError):
        raise UnknownMetric(f"metric {name!r} has one value: give a number, not {value!r}") from None
