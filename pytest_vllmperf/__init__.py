"""pytest suites that launch real vLLM servers and return a verdict on speed, quality and memory.

The names below are the public interface; they are loaded on first use, because every start of pytest
imports this package for its plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vllmperf.domain.custom_metrics import CustomMetric
    from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle
    from pytest_vllmperf.domain.evidence import Evidence, unmet
    from pytest_vllmperf.domain.metrics import METRICS, Better, Metric, metric, register_metric
    from pytest_vllmperf.domain.prompts import (
        Conversations,
        FillContext,
        PromptLines,
        RandomPrompts,
        SharedPrefix,
        ShareGPT,
        TraceReplay,
    )
    from pytest_vllmperf.domain.quality import QualityTask, ValidityLimits
    from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
    from pytest_vllmperf.domain.records import LoadRun, RequestOutcome, RequestRecord
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.summary import MetricValue, Summary, summarize
    from pytest_vllmperf.domain.thresholds import Limit, Outcome, Thresholds, Verdict, judge
    from pytest_vllmperf.domain.workload import BUILT_IN_WORKLOADS, Precision, ServiceLevel, Workload
    from pytest_vllmperf.errors import VllmPerfError

__all__ = [
    "BUILT_IN_TASKS",
    "BUILT_IN_WORKLOADS",
    "METRICS",
    "Better",
    "Conversations",
    "CustomMetric",
    "EngineConfig",
    "EngineHandle",
    "Evidence",
    "FillContext",
    "Limit",
    "LoadRun",
    "Metric",
    "MetricValue",
    "Outcome",
    "Precision",
    "PromptLines",
    "QualityTask",
    "RandomPrompts",
    "Report",
    "RequestOutcome",
    "RequestRecord",
    "ServiceLevel",
    "ShareGPT",
    "SharedPrefix",
    "Summary",
    "Thresholds",
    "TraceReplay",
    "ValidityLimits",
    "Verdict",
    "VllmPerfError",
    "Workload",
    "judge",
    "metric",
    "register_metric",
    "summarize",
    "unmet",
]

__version__ = "0.1.0"

_HOMES = {
    "domain.custom_metrics": ("CustomMetric",),
    "domain.engine": ("EngineConfig", "EngineHandle"),
    "domain.evidence": ("Evidence", "unmet"),
    "domain.metrics": ("METRICS", "Better", "Metric", "metric", "register_metric"),
    "domain.prompts": (
        "Conversations",
        "FillContext",
        "PromptLines",
        "RandomPrompts",
        "SharedPrefix",
        "ShareGPT",
        "TraceReplay",
    ),
    "domain.quality": ("QualityTask", "ValidityLimits"),
    "domain.quality_tasks": ("BUILT_IN_TASKS",),
    "domain.records": ("LoadRun", "RequestOutcome", "RequestRecord"),
    "domain.report": ("Report",),
    "domain.summary": ("MetricValue", "Summary", "summarize"),
    "domain.thresholds": ("Limit", "Outcome", "Thresholds", "Verdict", "judge"),
    "domain.workload": ("BUILT_IN_WORKLOADS", "Precision", "ServiceLevel", "Workload"),
    "errors": ("VllmPerfError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
