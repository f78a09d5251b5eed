"""People wait for the first word and then read along; the greeting is what everybody sees first."""

import asyncio
import time

import httpx
import pytest


@pytest.mark.vllm_workload("support-hours")
def test_nobody_waits_long(vllm_measure, vllm_check):
    """However many ask at once."""
    vllm_check(vllm_measure("support-hours"), "ttft_mean")


@pytest.mark.vllm_workload("support-hours")
def test_people_can_read_along(vllm_measure, vllm_check):
    """Answers keep ahead of the reader, and none fails."""
    vllm_check(vllm_measure("support-hours"), "reads_along", "error_rate")


@pytest.mark.anyio
@pytest.mark.vllm_workload("greeting")
async def test_the_greeting_is_quick(vllm_engine, vllm_record, vllm_check):
    """The bot's own client, three people at once."""
    headers = {"Authorization": f"Bearer {vllm_engine.api_key}"}
    async with httpx.AsyncClient(base_url=vllm_engine.base_url, headers=headers, timeout=60) as client:

        async def greet():
            began = time.perf_counter()
            body = {"model": vllm_engine.model_name, "prompt": "Hello!", "max_tokens": 8}
            (await client.post("/v1/completions", json=body)).raise_for_status()
            return time.perf_counter() - began

        took = await asyncio.gather(*(greet() for _ in range(3)))
    vllm_check(vllm_record(greeting_time=took), "greeting_time_p50")
