"""Throughput: what many users get together, and what each of them still feels."""

import pytest


@pytest.mark.parametrize("workload", ["ten-users", "burst", "heavy"])
def test_tokens_per_second(vllm_measure, vllm_check, workload):
    """Output, total and peak throughput of the whole engine, and the share of one request."""
    vllm_check(
        vllm_measure(workload),
        "output_throughput",
        "total_throughput",
        "peak_output_throughput",
        "per_request_throughput_mean",
    )


@pytest.mark.parametrize("workload", ["ten-users", "burst", "heavy"])
def test_latency_under_load(vllm_measure, vllm_check, workload):
    """TTFT and TPOT while the engine is busy: throughput alone can be bought with waiting."""
    vllm_check(vllm_measure(workload), "ttft_mean", "tpot_mean")
