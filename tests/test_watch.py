"""Engines that die or hang under load: noticed at once, everything under way classed, others not disturbed."""

import json
import os
import signal
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from test_pool import CPU
from traces import until

from pytest_vllmperf.adapters.control_client import parse_counters
from pytest_vllmperf.adapters.host_memory import HostMemory
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import EngineError, EngineExited
from pytest_vllmperf.evaluation import evaluate
from pytest_vllmperf.measurement import measure
from pytest_vllmperf.pool import EnginePool
from pytest_vllmperf.watch import Life, Watch

LONG = Workload(
    name="long", input_tokens=8, output_tokens=4, requests=120, request_rate=4.0, max_error_rate=1.0
)  # the engine's watcher, not the count of failures, is to end it
CLOSED = Workload(name="closed", input_tokens=8, output_tokens=4, requests=8, max_concurrency=2)


@pytest.fixture
def pool(tmp_path, fake_command):
    pools = []

    def make(**changes):
        given = {"name": "one", "model": "fake", "command": fake_command, **changes}
        engines = {"one": EngineConfig(**given), "two": EngineConfig(name="two", model="fake", command=fake_command)}
        pools.append(EnginePool(engines=engines, environment=CPU, directory=tmp_path / "logs"))
        return pools[-1]

    yield make
    for made in pools:
        made.close()


def test_a_crash_in_the_middle_of_a_schedule_ends_it_and_every_request_says_what_became_of_it(pool):
    """C01, C04: 30 s of schedule were left."""
    engines = pool()
    handle = engines.acquire("one")
    killed_at = []

    def answered():
        return len(json.loads(urllib.request.urlopen(f"{handle.base_url}/fake/stamps", timeout=10).read()))

    def kill_after(count):
        until(lambda: answered() >= count, 60)
        killed_at.append(time.monotonic())
        os.kill(handle.pid, signal.SIGKILL)

    def when_measuring(line):
        if "warm-up" not in line and "4 req/s" in line:
            threading.Thread(target=kill_after, args=(answered() + 4,)).start()

    summary = measure(handle, LONG, progress=when_measuring)
    assert killed_at
    noticed_s = time.monotonic() - killed_at[0]
    print(f"noticed and over after {noticed_s:.2f} s")  # -rP shows it
    assert noticed_s < 5.0
    assert summary.requests == 120
    assert 0 < summary.completed < 20
    assert summary.completed + sum(summary.failures.values()) == 120
    assert "the engine's process ended" in summary.invalid[-1]
    with pytest.raises(EngineExited, match=r"engine 'one' ended with SIGKILL .* after it was ready"):
        engines.ensure_alive("one", serves=True)
    assert measure(engines.acquire("two"), CLOSED).completed == 8  # the other engine goes on


def test_a_dead_engine_is_noticed_within_a_second(pool):
    """C01, C03: also when it ends with code 0."""
    handle = pool().acquire("one")
    with Life(handle) as life:
        os.kill(handle.pid, signal.SIGTERM)  # the fake engine ends with 0, as vLLM does
        since = time.monotonic()
        while life.verdict() is None:
            assert time.monotonic() - since < 20
            time.sleep(0.005)
    noticed_s = time.monotonic() - since
    print(f"noticed after {noticed_s:.2f} s")
    assert noticed_s < 2.0
    assert life.verdict() in ("the engine's process ended", "/health says that the engine is dead")


def test_an_engine_that_is_healthy_and_makes_no_token_hangs(pool):
    """C02: at the stall limit, and a probe's time beyond it."""
    engines = pool(args={"fake-hang-after-requests": 5}, stall_timeout_s=1.0)
    handle = engines.acquire("one")
    since = time.monotonic()
    summary = measure(handle, CLOSED)
    print(f"given up after {time.monotonic() - since:.2f} s")
    assert time.monotonic() - since < 15.0
    assert summary.invalid[-1].startswith("the engine hangs: it answers /health, and made no token for ")
    assert summary.failures["timeout"] == 2  # what was under way
    assert sum(summary.failures.values()) + summary.completed == 8


def test_a_hung_engine_is_found_out_although_it_says_that_it_is_healthy(pool, monkeypatch):
    monkeypatch.setattr("pytest_vllmperf.pool._SERVE_S", 0.3)
    monkeypatch.setattr("pytest_vllmperf.pool._DYING_S", 0.1)
    engines = pool(args={"fake-hang-after-requests": 1})
    engines.acquire("one")
    engines.ensure_alive("one")
    with pytest.raises(EngineError, match="engine 'one' answers /health and gives no token any more"):
        engines.ensure_alive("one", serves=True)


def test_an_engine_nobody_asks_for_anything_does_not_hang(pool):
    handle = pool(stall_timeout_s=0.4).acquire("one")
    with Life(handle) as life:
        until(lambda: asked_for_tokens(handle) > 2)  # the readiness request, and two more when all stood still
    assert life.verdict() is None


# ---------------------------------------------------------------------- memory


def test_memory_is_sampled_at_both_ends_and_a_rise_nobody_read_is_a_doubt(monkeypatch):
    watch = Watch(pid=os.getpid(), gpu_uuids=(), counters=lambda: parse_counters("", at_ns=0))
    with watch:
        until(lambda: watch.memory)
        monkeypatch.setattr(HostMemory, "unread_bytes", 300 * 2**20)
    assert len(watch.memory) >= 2
    assert all(sample.host_bytes > 2**20 for sample in watch.memory)
    assert watch.failures == [
        "host memory rose too briefly to be read: host_memory_peak may be 300 MiB too low",
    ]


def asked_for_tokens(handle):
    with urllib.request.urlopen(f"{handle.base_url}/fake/requests") as answer:
        return len(json.load(answer))


# ---------------------------------------------------------------------- while questions are asked

QUESTIONS = Path(__file__).parents[1] / "suites" / "models" / "tinymath" / "test.jsonl"
SLOW = replace(BUILT_IN_TASKS["tinymath"], data=str(QUESTIONS), questions=200, canaries=False, kl_texts=0)
SLOWLY = {"fake-ttft-ms": 400, "fake-itl-ms": 1}


def asked_until(handle, harm):
    """Ask slowly, do harm half a second after the first answer, and say how long it went on after that."""
    harmed_at = []

    def told(done, _count):
        if done == 1:
            timer = threading.Timer(0.5, lambda: (harmed_at.append(time.monotonic()), harm()))
            timer.start()

    evaluation = evaluate(handle, SLOW, progress=told)
    took_s = time.monotonic() - harmed_at[0]
    print(f"noticed and over after {took_s:.2f} s")  # -rP shows it
    return evaluation, took_s


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_that_dies_while_questions_are_asked_ends_them(pool, how):
    """C06: every question has a record, and the other engine goes on."""
    engines = pool(args=SLOWLY)
    handle = engines.acquire("one")
    summary, took_s = asked_until(handle, lambda: os.kill(handle.pid, how))
    assert took_s < 5.0
    assert summary.invalid[0] == "the engine's process ended"
    assert 0 < summary.completed < 200
    assert summary.completed + sum(summary.failures.values()) == 200
    with pytest.raises(EngineExited, match=r"engine 'one' ended with .* after it was ready"):
        engines.ensure_alive("one", serves=True)
    quick = replace(SLOW, questions=40)
    assert evaluate(engines.acquire("two"), quick).failures == {}


def test_an_engine_that_hangs_while_questions_are_asked_ends_them_too(pool):
    """C06: far before the deadline of a request, ten minutes."""
    engines = pool(stall_timeout_s=1.0, args={"fake-hang-after-requests": 30})
    handle = engines.acquire("one")
    since = time.monotonic()
    summary = evaluate(handle, SLOW)
    print(f"over after {time.monotonic() - since:.2f} s")  # -rP shows it
    assert time.monotonic() - since < 30.0
    assert "the engine hangs: it answers /health" in summary.invalid[0]
    assert summary.completed + sum(summary.failures.values()) == 200
