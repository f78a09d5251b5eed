"""Latency: what a single user feels, one request a second."""

import pytest


@pytest.mark.vllm_workload("single-user")
def test_first_token_comes_quickly(vllm_measure, vllm_check):
    """TTFT, counted from when the request was due: a stalled server cannot hide its queue."""
    vllm_check(vllm_measure("single-user"), "ttft_mean", "ttft_p50", "ttft_p95", "ttft_p99")


@pytest.mark.vllm_workload("single-user")
def test_tokens_keep_coming(vllm_measure, vllm_check):
    """TPOT: the pace after the first token."""
    vllm_check(vllm_measure("single-user"), "tpot_mean", "tpot_p50", "tpot_p95", "tpot_p99")
