"""Memory: the peaks while a hundred requests are in flight."""

import pytest


@pytest.mark.vllm_workload("heavy")
def test_device_memory_stays_below_its_ceiling(vllm_engine, vllm_measure, vllm_check):
    """The largest use of the engine's GPUs."""
    if vllm_engine.device != "gpu":
        pytest.skip("no GPU: device memory cannot be measured here")
    vllm_check(vllm_measure("heavy"), "device_memory_peak")


@pytest.mark.vllm_workload("heavy")
def test_host_memory_stays_below_its_ceiling(vllm_measure, vllm_check):
    """The proportional set size of the engine's whole process tree."""
    vllm_check(vllm_measure("heavy"), "host_memory_peak")


@pytest.mark.vllm_workload("heavy")
def test_cache_is_large_enough(vllm_measure, vllm_check):
    """Preemptions mean that the KV cache ran full and work was thrown away."""
    vllm_check(vllm_measure("heavy"), "kv_cache_usage_peak", "preemptions")
