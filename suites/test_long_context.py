"""Long context: prompts that fill nine tenths of it."""

import pytest


@pytest.mark.vllm_workload("long-context")
def test_prompts_that_fill_the_context_are_answered(vllm_measure, vllm_check):
    """Every request completes, and how long the first token takes."""
    vllm_check(vllm_measure("long-context"), "error_rate", "ttft_mean")


@pytest.mark.vllm_workload("long-context")
def test_cache_holds_full_contexts(vllm_measure, vllm_check):
    """Preemptions mean that the KV cache ran full and work was thrown away."""
    vllm_check(vllm_measure("long-context"), "kv_cache_usage_peak", "preemptions")
