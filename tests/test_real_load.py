"""The load client against real vLLM: what it counts and times is what the engine itself counts and times."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_vllmperf import EngineConfig, Workload
from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.adapters.environment import gather_environment
from pytest_vllmperf.domain.engine import EngineHandle
from pytest_vllmperf.domain.prompts import SharedPrefix
from pytest_vllmperf.domain.records import LoadRun, ServerCounters
from pytest_vllmperf.domain.summary import Summary, summarize
from pytest_vllmperf.load.driver import run_load
from pytest_vllmperf.measurement import measure, token_range
from pytest_vllmperf.pool import EnginePool

pytestmark = [
    pytest.mark.real_load,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

MODEL = Path(__file__).parents[1] / "suites" / "models" / "tinymath"
CPU_ARGS = {"enforce-eager": True, "gpu-memory-utilization": 0.2, "max-model-len": 2048, "enable-prefix-caching": True}
SIZE = {"input_tokens": 300, "output_tokens": 48}
"""More than two blocks of the prefix cache, which have 128 tokens on a CPU: a hit by accident would show."""
COLD = {
    "closed": Workload(name="closed", requests=48, max_concurrency=8, **SIZE),
    "open": Workload(name="open", requests=30, request_rate=15.0, **SIZE),
    "two-processes": Workload(name="two-processes", requests=32, max_concurrency=8, workers=2, **SIZE),
    "free-length": Workload(name="free-length", requests=24, max_concurrency=8, ignore_eos=False, **SIZE),
    "chat": Workload(name="chat", requests=24, max_concurrency=8, api="chat", **SIZE),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHandle]:
    """One live engine with its prefix cache on."""
    folder = tmp_path_factory.mktemp("real-load")
    pool = EnginePool(
        engines={"real": EngineConfig(name="real", model=str(MODEL), cpu_args=CPU_ARGS)},
        environment=gather_environment(folder, gpus=(), driver=None),
        directory=folder,
        progress=None,
    )
    yield pool.acquire("real")
    pool.close()


@dataclass
class Seen:
    """One run and the engine's own counters around it."""

    run: LoadRun
    before: ServerCounters
    after: ServerCounters
    summary: Summary

    def grew(self, counter: str) -> int:
        return getattr(self.after, counter) - getattr(self.before, counter)


@pytest.fixture(scope="module")
def runs(engine: EngineHandle) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}
    with ControlClient(engine.base_url, engine.api_key) as control:
        for place, workload in enumerate((COLD["closed"], *COLD.values())):  # the first one only warms up
            before = control.counters()
            run = run_load(
                workload,
                base_url=engine.base_url,
                model=engine.model_name,
                api_key=engine.api_key,
                token_range=token_range(str(MODEL)),
                seed=place,
            )
            after = control.counters()
            summary = summarize(
                run, engine="real", model=engine.model_name, workload=workload, before=before, after=after
            )
            seen[workload.name] = Seen(run, before, after, summary)
    return seen


@pytest.mark.parametrize("name", COLD)
def test_tokens_are_those_the_engine_counted_and_none_came_from_its_cache(runs: dict[str, Seen], name: str) -> None:
    seen = runs[name]
    assert [record.outcome.value for record in seen.run.records] == ["success"] * COLD[name].requests
    assert sum(record.output_tokens or 0 for record in seen.run.records) == seen.grew("generation_tokens") > 0
    assert sum(record.input_tokens or 0 for record in seen.run.records) == seen.grew("prompt_tokens") > 0
    assert seen.grew("prefix_cache_hits") == 0
    assert seen.grew("prefix_cache_queries") > 0, "the cache was on"
    counted = [reason for reason in seen.summary.invalid if "the client was the bottleneck" not in reason]
    assert counted == [], "a machine in use may make the client late; nothing else is wrong"


@pytest.mark.parametrize("name", ["closed", "two-processes"])
def test_latencies_are_those_of_the_engine_and_what_lies_between(runs: dict[str, Seen], name: str) -> None:
    seen = runs[name]
    engine_s, observed = seen.after.latencies["ttft"]
    earlier_s, earlier = seen.before.latencies["ttft"]
    assert observed - earlier == COLD[name].requests
    engine_ttft_s = (engine_s - earlier_s) / (observed - earlier)
    facts = seen.summary.facts
    assert facts["engine_ttft_s"] == pytest.approx(engine_ttft_s, rel=1e-4)
    ttft_s, tpot_s = (seen.summary.metrics[metric].value for metric in ("ttft_mean", "tpot_mean"))
    assert ttft_s > engine_ttft_s, "a client sees the first token after the engine has it"
    assert tpot_s == pytest.approx(facts["engine_gap_s"], rel=0.15)


def test_a_planned_share_of_the_prompts_comes_from_the_prefix_cache(engine: EngineHandle) -> None:
    workload = Workload(
        name="shared",
        requests=40,
        max_concurrency=8,
        prompts=SharedPrefix(tokens=256, groups=2, share=0.5),
        **SIZE,
    )
    summary = measure(engine, workload)
    assert [reason for reason in summary.invalid if "the client was the bottleneck" not in reason] == []
    assert summary.metrics["prefix_cache_hit_rate"].value == pytest.approx(0.5 * 256 / 300, abs=0.05)
