"""Extension points. Implement them in a ``conftest.py`` or a plugin of your own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vllmperf.domain.custom_metrics import CustomMetric
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.domain.workload import Workload


@pytest.hookspec
def pytest_vllmperf_engines(config: pytest.Config) -> Iterable[EngineConfig]:
    """Return the engines to measure. The plugin does nothing where no implementation exists.

    Called once, on every start of pytest, ``--collect-only`` included: build configurations here and
    launch, probe or download nothing.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_vllmperf_workloads(config: pytest.Config) -> Iterable[Workload]:
    """Return workloads beside the built-in ones; one with a built-in's name replaces it."""
    raise NotImplementedError


@pytest.hookspec
def pytest_vllmperf_quality_tasks(config: pytest.Config) -> Iterable[QualityTask]:
    """Return the quality tasks ``vllm_quality_task`` runs through."""
    raise NotImplementedError


@pytest.hookspec
def pytest_vllmperf_metrics(config: pytest.Config) -> Iterable[CustomMetric]:
    """Return metrics of your own. They get limits, history and a place in the report like every other.

    One with ``compute`` is there in every load measurement; a test records the others with ``vllm_record``.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_vllmperf_sections(config: pytest.Config, report: Report) -> Iterable[Section]:
    """Return sections to add to the report, computed from the finished run; called before anything is written.

    A section whose ``id`` is there already takes its place.
    """
    raise NotImplementedError


@pytest.hookspec
def pytest_vllmperf_report(config: pytest.Config, report: Report) -> None:
    """Receive the finished report, after it was written: export it to wherever you need it."""
