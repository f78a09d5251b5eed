"""Comparison: is the candidate worse than the baseline? Both are launched alternately, as often as it takes.

Runs only when asked: pytest suites/test_comparison.py --vllmperf-compare baseline:max-perf
"""

import pytest


@pytest.mark.parametrize("workload", ["single-user", "burst", "heavy"])
@pytest.mark.vllm_metrics("output_throughput", "ttft_mean", "tpot_mean")
def test_speed_is_not_worse(vllm_compare, workload):
    """Each metric by its own tolerance: one in thresholds.toml, else the catalogue's."""
    vllm_compare(workload)


@pytest.mark.vllm_workload("heavy")
@pytest.mark.vllm_metrics("device_memory_peak", "host_memory_peak")
def test_memory_is_not_worse(vllm_compare):
    """The peaks under the heaviest load; without a GPU the host's only."""
    vllm_compare("heavy")


def test_answers_are_not_worse(vllm_compare, vllm_quality_task):
    """The same questions to both engines; what only one of them answers right decides."""
    vllm_compare(vllm_quality_task)
