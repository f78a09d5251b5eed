"""The limits file: limits, which use wants what, what to sweep, options of quality tasks."""

from pytest_vllmperf.adapters.threshold_file.reader import check_thresholds, read_thresholds

__all__ = ["check_thresholds", "read_thresholds"]
