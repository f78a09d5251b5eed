"""How long launches will take, from what earlier runs stored."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.quality import QualityTask

if TYPE_CHECKING:
    import pytest

    from pytest_vllmperf.adapters.history import StoredMetric
    from pytest_vllmperf.comparison import Comparison
    from pytest_vllmperf.domain.engine import Device

__all__ = ["pair_seconds"]

_RUNS_READ = 5
_STOPPING_S = 3.0
_WARM_UP = 1.3
"""A measurement with its warm-up, as a multiple of the measured window."""


def pair_seconds(plan: Comparison, config: pytest.Config, *, device: Device) -> float | None:
    """Seconds one pair of launches takes, from the latest stored runs; None where they do not tell."""
    from pytest_vllmperf.adapters import history

    stored = [m for run in history.earlier_runs(config, at_most=_RUNS_READ).runs for m in run.metrics]
    total = 0.0
    for engine in (plan.baseline, plan.candidate):
        mine = [metric for metric in stored if metric.engine in (engine.name, engine.name.removesuffix(".again"))]
        ready = [sample for metric in mine if metric.metric == "time_to_ready" for sample in metric.samples]
        if not ready:
            return None
        total += median(ready) + _STOPPING_S
        for asked in plan.asked:
            seconds = _lasted(mine, asked.name)
            if seconds is None and not isinstance(asked, QualityTask) and asked.request_rate:
                seconds = asked.on(device).requests / asked.request_rate
            if seconds is None:
                return None
            total += seconds * _WARM_UP
    return total


def _lasted(stored: list[StoredMetric], workload: str) -> float | None:
    lasted = [
        seconds
        for metric in stored
        if metric.workload == workload and isinstance(seconds := metric.extra_info.get("duration_s"), (int, float))
    ]
    return float(median(lasted)) if lasted else None
