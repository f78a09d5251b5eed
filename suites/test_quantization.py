"""Quantization: which variant of a model to serve. Opt-in: ``pytest suites/ -m quantization``.

The engines differ in their weights only (see conftest.py); the first is the reference. The report sets them side by
side: quality against the reference on the same questions, speed, memory.
"""

import pytest

pytestmark = pytest.mark.quantization


def test_answers_are_as_good_as_the_references(vllm_evaluate, vllm_quality_task, vllm_check):
    """Accuracy and its change on the same questions; KL and top-1 agreement see small damage first."""
    summary = vllm_evaluate(vllm_quality_task)
    compared = [name for name in ("kl_mean", "top1_agreement") if name in summary.metrics]
    vllm_check(summary, "accuracy", *compared, "perplexity")


@pytest.mark.parametrize("workload", ["ten-users"])
def test_speed_is_worth_it(vllm_measure, vllm_check, workload):
    """Throughput and latency of the same load on each variant."""
    vllm_check(vllm_measure(workload), "output_throughput", "ttft_mean", "tpot_mean")


@pytest.mark.parametrize("workload", ["ten-users"])
def test_memory_is_saved(vllm_engine, vllm_measure, vllm_check, workload):
    """Peaks under that load; on a GPU weights and KV cache share what gpu-memory-utilization gives."""
    device = ["device_memory_peak"] if vllm_engine.device == "gpu" else []
    vllm_check(vllm_measure(workload), *device, "host_memory_peak")
