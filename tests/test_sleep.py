"""Sleep mode: timed, with memory before and after, and two models that take turns on one GPU."""

import json
import urllib.request
from dataclasses import replace

import pytest
from fake_nvml import GIB
from test_pool import CPU

from pytest_vllmperf.adapters.leases import HostLeases
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.environment import Gpu
from pytest_vllmperf.errors import EngineError, EngineUnavailable
from pytest_vllmperf.measurement import sleep_summary
from pytest_vllmperf.pool import EnginePool

ONE_GPU = replace(
    CPU, device="gpu", gpus=(Gpu(index=0, uuid="GPU-0", name="NVIDIA H200", memory_bytes=80 * GIB),), hardware="H200"
)


@pytest.fixture
def pool(tmp_path, fake_command, monkeypatch):
    monkeypatch.setattr("pytest_vllmperf.controls._SETTLE_S", 0.1)
    engines = {
        name: EngineConfig(name=name, model=name, command=fake_command, args={"enable-sleep-mode": True})
        for name in ("one", "two")
    }
    engines["restless"] = EngineConfig(name="restless", model="m", command=fake_command)
    pool = EnginePool(
        engines=engines, environment=ONE_GPU, directory=tmp_path / "logs", leases=HostLeases(tmp_path / "locks")
    )
    yield pool
    pool.close()


def told(handle):
    with urllib.request.urlopen(f"{handle.base_url}/fake/told") as answer:
        return json.load(answer)


def test_an_engine_sleeps_and_wakes_up_and_says_how_long_it_took_and_what_it_freed(pool, nvml, monkeypatch):
    handle = pool.acquire("one")
    sizes = iter([60 * GIB, 60 * GIB, 3 * GIB, 3 * GIB, 61 * GIB])
    monkeypatch.setattr("pytest_vllmperf.controls.device_memory_bytes", lambda _uuids: next(sizes))
    asleep = handle.sleep(1)
    assert (asleep.action, asleep.level) == ("sleep", 1)
    assert (asleep.device_bytes_before, asleep.device_bytes_after) == (60 * GIB, 3 * GIB)
    assert asleep.host_bytes_before > 0
    with pytest.raises(EngineError, match="engine 'one' sleeps already, at level 1"):
        handle.sleep(1)
    awake = handle.wake()
    assert (awake.device_bytes_before, awake.device_bytes_after) == (3 * GIB, 61 * GIB)
    assert awake.duration_ns > 5_000_000  # a token was waited for
    assert told(handle) == ["/sleep?level=1", "/wake_up"]
    pool.ensure_alive("one", serves=True)


def test_after_level_2_the_weights_are_loaded_anew(pool, nvml):
    handle = pool.acquire("one")
    handle.sleep(2)
    handle.wake()
    assert told(handle) == [
        "/sleep?level=2",
        "/wake_up?tags=weights",
        '/collective_rpc {"method":"reload_weights"}',
        "/wake_up?tags=kv_cache",
    ]


def test_two_models_take_turns_on_one_gpu_without_a_restart(pool, nvml):
    one = pool.acquire("one")
    with pytest.raises(EngineUnavailable, match="engine 'two' needs 1 GPUs and 0 are free: release one first"):
        pool.acquire("two")
    one.sleep()
    two = pool.acquire("two")
    assert pool.gpu_uuids("two") == pool.gpu_uuids("one") == ("GPU-0",)
    for _ in range(2):
        two.sleep()
        one.wake()
        pool.ensure_alive("one", serves=True)
        one.sleep()
        two.wake()
        pool.ensure_alive("two", serves=True)
    assert (pool.launches("one"), pool.launches("two")) == (1, 1)
    pool.release("one")
    pool.ensure_alive("two", serves=True)


def test_the_gpu_stays_leased_until_both_have_given_it_back(pool, nvml, tmp_path):
    pool.acquire("one").sleep()
    pool.acquire("two")
    pool.release("one")
    lines = []

    class Enough(Exception):
        pass

    def waiting(line):
        lines.append(line)
        raise Enough

    with pytest.raises(Enough):
        HostLeases(tmp_path / "locks").take("x", gpus=("GPU-0",), count=1, waiting=waiting)
    pool.release("two")
    assert HostLeases(tmp_path / "locks").take("x", gpus=("GPU-0",), count=1) == ("GPU-0",)


def test_an_engine_that_was_not_launched_for_it_cannot_sleep(pool, nvml):
    handle = pool.acquire("restless")
    with pytest.raises(EngineError, match=r'cannot sleep: give it args=\{"enable-sleep-mode": True\}'):
        handle.sleep()
    with pytest.raises(EngineError, match="does not sleep"):
        handle.wake()


def test_sleep_is_a_summary_that_limits_can_judge(pool, nvml):
    nvml.memory["GPU-0"] = 5 * GIB
    summary = sleep_summary(pool.acquire("one"))
    assert summary.workload == "sleep"
    assert summary.metrics["time_to_sleep"].value > 0
    assert summary.metrics["time_to_wake"].value > 0
    assert summary.metrics["device_memory_asleep"].value == 5 * GIB


def test_a_handle_shows_evidence_by_itself(pool, nvml):
    assert "sleep mode" in {item.optimisation for item in pool.acquire("one").evidence()}
