"""History in pytest-benchmark's storage; the only importer of pytest-benchmark's insides."""

from __future__ import annotations

from pytest_vllmperf.adapters.history.recording import as_stored, prepare, record, run_as_file
from pytest_vllmperf.adapters.history.stored import StoredMetric, StoredRun, StoredRuns, earlier_runs, stored_runs
from pytest_vllmperf.adapters.history.tables import pytest_benchmark_scale_unit

__all__ = [
    "StoredMetric",
    "StoredRun",
    "StoredRuns",
    "as_stored",
    "earlier_runs",
    "prepare",
    "pytest_benchmark_scale_unit",
    "record",
    "run_as_file",
    "stored_runs",
]
