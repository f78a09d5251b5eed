"""Measuring a live (fake) engine: warm-up apart, memory and counters watched, prompts never repeated."""

import dataclasses
import json
import urllib.request

import pytest
from fake_nvml import GIB

from pytest_vllmperf import BUILT_IN_WORKLOADS, Conversations, EngineConfig, FillContext, SharedPrefix, Workload
from pytest_vllmperf.adapters.environment import gather_environment
from pytest_vllmperf.measurement import measure, prompt_seed, resolved, start_up_summary, token_range
from pytest_vllmperf.pool import EnginePool
from pytest_vllmperf.warm_up import warm_up_of

TINY = Workload(name="tiny", input_tokens=16, output_tokens=8, requests=6, max_concurrency=3)


@pytest.fixture
def engine(tmp_path, fake_command):
    environment = gather_environment(tmp_path, gpus=(), driver=None)
    config = EngineConfig(name="one", model="fake-model", command=fake_command)
    pool = EnginePool(engines={"one": config}, environment=environment, directory=tmp_path)
    yield pool.acquire("one")
    pool.close()


def bodies(engine) -> list[dict]:
    with urllib.request.urlopen(f"{engine.base_url}/fake/requests") as answer:
        return json.load(answer)


def test_a_measurement_has_every_metric_of_a_load_run(engine):
    summary = measure(engine, TINY)
    assert summary.completed == summary.requests == 6
    assert summary.invalid == ()
    for name in ("ttft_mean", "tpot_mean", "e2el_mean", "output_throughput", "total_throughput", "host_memory_peak"):
        assert summary.metrics[name].value is not None, summary.metrics[name].missing
        assert summary.metrics[name].value > 0
    assert summary.metrics["device_memory_peak"].missing == "no GPU"
    assert summary.metrics["preemptions"].value == 0
    assert summary.metrics["goodput"].missing == "the workload states no service level"


def test_no_prompt_is_sent_twice_whatever_is_measured_on_one_engine(engine):
    measure(engine, TINY)
    measure(engine, Workload(name="other", input_tokens=16, output_tokens=8, requests=6, max_concurrency=3))
    openings = [tuple(body["prompt"][:8]) for body in bodies(engine) if isinstance(body["prompt"], list)]
    assert len(openings) >= 18
    assert len(set(openings)) == len(openings)


def test_progress_tells_warm_up_measurement_and_result(engine):
    lines: list[str] = []
    measure(engine, TINY, progress=lines.append)
    assert [line.split(":")[1].strip() for line in lines] == ["tiny"] * 3
    assert "warm-up" in lines[0]
    assert "6/6 requests" in lines[2]


def test_a_start_up_becomes_a_summary_that_limits_can_judge(engine):
    summary = start_up_summary(engine)
    ready = summary.metrics["time_to_ready"].value
    first = summary.metrics["first_request_ttft"].value
    assert ready is not None
    assert first is not None
    assert 0 < first < ready


@pytest.mark.parametrize("workload", BUILT_IN_WORKLOADS, ids=lambda w: w.name)
def test_a_warm_up_has_the_prompts_and_the_concurrency_of_its_workload(workload):
    workload = workload.in_context(2048)
    warm_up = warm_up_of(workload)
    longest = 4 * 128 + 3 * 64 if workload.name == "multi-turn" else workload.input_tokens
    assert warm_up.input_tokens == longest
    assert 1 <= warm_up.output_tokens <= 64
    assert warm_up.requests == warm_up.max_concurrency == (workload.max_concurrency or 2)
    assert not warm_up.open_loop


@pytest.fixture
def caching_engine(tmp_path, fake_command):
    """Gives an engine whose counters tell what a prefix cache would have served."""
    environment = gather_environment(tmp_path, gpus=(), driver=None)
    pools = []

    def start(*flags):
        command = (*fake_command, "--fake-prefix-cache", *flags)
        config = EngineConfig(name="one", model="fake-model", command=command)
        pools.append(EnginePool(engines={"one": config}, environment=environment, directory=tmp_path))
        return pools[-1].acquire("one")

    yield start
    for pool in pools:
        pool.close()


def test_hits_are_as_planned(caching_engine):
    engine = caching_engine()
    shared = Workload(
        name="shared",
        input_tokens=48,
        output_tokens=4,
        requests=12,
        max_concurrency=3,
        prompts=SharedPrefix(tokens=36, share=0.75, groups=5),
    )
    talk = Workload(
        name="talk", input_tokens=20, output_tokens=4, requests=6, max_concurrency=2, prompts=Conversations(turns=3)
    )
    for workload, rate in ((shared, 9 * 32 / (12 * 48)), (talk, 2 * (16 + 32) / (2 * (20 + 44 + 68))), (TINY, 0.0)):
        summary = measure(engine, workload)
        assert summary.invalid == ()
        assert summary.facts["prefix_cache_block_tokens"] == 16
        assert summary.metrics["prefix_cache_hit_rate"].value == pytest.approx(rate)
        assert summary.facts["planned_prefix_cache_hit_rate"] == pytest.approx(rate, abs=1e-6)


def test_hits_that_no_plan_explains_make_the_measurement_invalid(caching_engine):
    summary = measure(caching_engine("--fake-prefix-cache-accident", "16"), TINY)
    (reason,) = (reason for reason in summary.invalid if "the client was the bottleneck" not in reason)
    assert "the prefix cache served 96 prompt tokens and the plan explains 0" in reason


def test_an_engine_without_prefix_cache_has_no_hit_rate(engine):
    assert measure(engine, TINY).metrics["prefix_cache_hit_rate"].missing == (
        "prefix caching is off: nothing was looked up"
    )


def test_a_full_context_is_the_one_the_server_tells(engine):
    workload = Workload(name="full", output_tokens=4, requests=1, max_concurrency=1, prompts=FillContext(share=0.5))
    assert resolved(workload, engine).input_tokens == 2048  # the fake engine tells 4096
    assert measure(engine, workload).facts["input_tokens"] == 2048


def test_every_workload_and_part_draws_prompts_of_its_own():
    seeds = {prompt_seed(w, part) for w in BUILT_IN_WORKLOADS for part in ("warm-up", "measured")}
    assert len(seeds) == 2 * len(BUILT_IN_WORKLOADS)


def test_prompts_avoid_specials_and_single_bytes(tmp_path):
    for size, expected in ((438, (259, 438)), (300, (150, 300)), (151_936, (259, 136_743)), (None, (259, 9_000))):
        folder = tmp_path / str(size)
        folder.mkdir()
        if size is not None:
            (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
        assert token_range(str(folder)) == expected


# ---------------------------------------------------------------------- GPUs


def test_what_the_gpus_did_is_part_of_the_measurement(engine, nvml):
    """V02, V06: the driver hides processes here, so it is what came since the launch."""
    nvml.memory["GPU-0"] = 41 * GIB
    nvml.reasons = 0x4
    handle = dataclasses.replace(engine, gpu_uuids=("GPU-0",), device_baseline_bytes=1 * GIB)
    summary = measure(handle, TINY)
    values = {
        name: summary.metrics[name].value for name in ("device_memory_peak", "device_memory_steady", "power_mean")
    }
    assert values == {"device_memory_peak": 40 * GIB, "device_memory_steady": 40 * GIB, "power_mean": 400.0}
    assert summary.metrics["energy_per_output_token"].value > 0  # the counter stood still: power times time
    assert summary.metrics["sm_clock_ratio"].value == 0.75
    assert summary.facts["device_memory_source"] == "device delta"
    assert summary.invalid == ()
    assert summary.facts["clocks_held_back"] == {"SW power cap": 1.0}
    assert not any("power" in warning for warning in summary.warnings)  # full load runs at the power limit


def test_with_processes_known_only_the_engines_own_memory_counts(engine, nvml):
    """V03."""
    nvml.memory["GPU-0"] = 41 * GIB
    nvml.processes["GPU-0"] = {engine.pid: 30 * GIB, 1: 10 * GIB}
    summary = measure(engine, TINY, gpu_uuids=("GPU-0",))
    assert summary.metrics["device_memory_peak"].value == 30 * GIB
    assert summary.facts["device_memory_source"] == "processes"


def test_a_hot_gpu_is_measured_once_more_when_it_has_cooled(engine, nvml, monkeypatch):
    """V06."""
    monkeypatch.setattr("pytest_vllmperf.measurement._COOLING_POLL_S", 0.01)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        nvml.reasons = 0 if any("waiting up to 120 s" in said for said in lines) else 0x40

    nvml.reasons = 0x40
    summary = measure(engine, TINY, gpu_uuids=("GPU-0",), progress=tell)
    assert summary.invalid == ()
    assert any("measured a second time" in warning for warning in summary.warnings)


def test_a_gpu_that_stays_hot_makes_the_measurement_invalid(engine, nvml, monkeypatch):
    """V06."""
    monkeypatch.setattr("pytest_vllmperf.measurement._COOLING_S", 0.05)
    nvml.reasons = 0x40
    summary = measure(engine, TINY, gpu_uuids=("GPU-0",))
    assert any("the GPU was throttled" in reason for reason in summary.invalid)


def test_without_a_driver_that_works_device_memory_is_unknown_and_the_rest_is_measured(engine, nvml):
    """V01."""
    nvml.broken = {"DeviceGetMemoryInfo", "DeviceGetPowerUsage", "DeviceGetTotalEnergyConsumption"}
    summary = measure(engine, TINY, gpu_uuids=("GPU-0",))
    assert summary.completed == 6
    assert summary.invalid == ()
    assert summary.metrics["device_memory_peak"].value is None
    assert summary.metrics["device_memory_peak"].missing == "the driver did not tell"
