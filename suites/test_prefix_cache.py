"""Prefix cache: what prompts have in common is computed once, on engines that keep it."""

from dataclasses import replace

import pytest

from pytest_vllmperf import BUILT_IN_WORKLOADS, RandomPrompts

SHARED = next(workload for workload in BUILT_IN_WORKLOADS if workload.name == "shared-prefix")
UNSHARED = replace(SHARED, name="unshared-prefix", prompts=RandomPrompts())


@pytest.mark.parametrize("workload", ["shared-prefix", "multi-turn"])
def test_hits_are_as_planned(vllm_engine, vllm_measure, vllm_check, workload):
    """By the server's own counters: the planned rate, or nothing where the engine was told to cache nothing."""
    summary = vllm_measure(workload)
    vllm_check(summary, "prefix_cache_hit_rate")
    rate = summary.metrics["prefix_cache_hit_rate"].value
    if vllm_engine.config.args.get("enable-prefix-caching") is False:
        assert not rate, f"{vllm_engine.name} asks for no prefix caching, and {rate:.1%} of the tokens were cached"
    else:
        planned = summary.facts["planned_prefix_cache_hit_rate"]
        assert rate == pytest.approx(planned, abs=0.02), f"{vllm_engine.name} caches prefixes unless told not to"


def test_first_token_with_and_without_a_shared_prefix(vllm_measure, vllm_check):
    """The same load twice, once with prompts that open alike and once with nothing in common."""
    for workload in (SHARED, UNSHARED):
        vllm_check(vllm_measure(workload), "ttft_mean", "ttft_p50")
