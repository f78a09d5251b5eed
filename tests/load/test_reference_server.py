"""The ground truth must be true: its stamps follow the schedule asked for, its effects and its queue are as planted."""

import json
import socket
import statistics
import sys
import urllib.request

import numpy as np
import pytest
from reference import MODEL, SERVER, ReferenceServer, reference_server
from reference_model import Noise, factors_of, flags_in, launch_shift, parse_effect
from serving import TOKENS, small

from pytest_vllmperf import EngineConfig
from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.adapters.environment import gather_environment
from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.driver import run_load
from pytest_vllmperf.measurement import measure
from pytest_vllmperf.pool import EnginePool

LATE_NS = 40_000_000
"""What a busy machine may delay one send by in these tests; the schedule is never early."""


def load(server: ReferenceServer, workload: Workload) -> LoadRun:
    return run_load(workload, base_url=server.base_url, model=MODEL, api_key=None, token_range=TOKENS, seed=1)


def test_every_send_stands_where_the_schedule_says() -> None:
    with reference_server("--ttft-ms", "30", "--tpot-ms", "4") as server:
        run = load(server, small(output_tokens=25))
        truths = server.stamps()
    assert [truth["tokens"] for truth in truths] == [[1] * 25] * 6
    for truth in truths:
        plan = [truth["admitted_ns"] + 30_000_000 + k * 4_000_000 for k in range(25)]
        assert np.allclose(truth["due_ns"], plan, rtol=0, atol=1)
        lateness = np.array(truth["sent_ns"]) - np.array(truth["due_ns"])
        assert lateness.min() >= 0
        assert np.median(lateness) < LATE_NS
    assert all(record.succeeded for record in run.records)
    ours = sorted(stamp for record in run.records for stamp in record.event_ns)
    theirs = sorted(stamp for truth in truths for stamp in truth["sent_ns"])
    assert all(ours_ns > theirs_ns for ours_ns, theirs_ns in zip(ours, theirs, strict=True))


def test_effects_change_what_they_name_where_their_flags_are_given() -> None:
    flags = ("--enforce-eager", "--tpot-ms", "4", "--ttft-ms", "10", "--effect", "flag=enforce-eager:tpot*1.5,ttft+0.1")
    with reference_server(*flags) as server:
        told = server.control("configuration")
    assert told["tpot_s"] == pytest.approx(0.006)
    assert told["ttft_s"] == pytest.approx(0.11)
    with reference_server(*flags[1:]) as server:
        assert server.control("configuration")["tpot_s"] == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("effect", "argv", "factor"),
    [
        ("flag=x:tpot*1.2", ["--x"], 1.2),
        ("flag=x:tpot*1.2", ["--x", "false"], None),
        ("flag=x:tpot*1.2", ["--no-x"], None),
        ("flag=x=4:tpot*1.2", ["--x=4"], 1.2),
        ("flag=x=4:tpot*1.2", ["--x", "8"], None),
        ("flag=a_b&no-c:tpot*0.9", ["--a-b", "--no-c"], 0.9),
        ("flag=a_b&no-c:tpot*0.9", ["--a-b"], None),
    ],
)
def test_conditions_of_effects(effect: str, argv: list[str], factor: float | None) -> None:
    found = factors_of(parse_effect(effect), flags_in(argv)).get("tpot")
    assert found == (None if factor is None else (factor, 0.0))


@pytest.mark.parametrize("text", ["x:tpot*2", "flag=x", "flag=x:speed*2", "flag=:tpot*2", "flag=x:tpot/2"])
def test_an_effect_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="effect"):
        parse_effect(text)


def test_slots_make_the_others_wait_as_the_service_times_say() -> None:
    """Six requests of 100 ms at once over two slots: admitted at 0, 0, 100, 100, 200 and 200 ms."""
    with reference_server("--ttft-ms", "10", "--tpot-ms", "10", "--slots", "2") as server:
        load(server, small(output_tokens=10, max_concurrency=6))
        truths = server.stamps()
        with ControlClient(server.base_url) as control:
            counters = control.counters()
    started_ns = truths[0]["arrived_ns"]
    waits_ms = [(truth["admitted_ns"] - started_ns) / 1e6 for truth in truths]
    for place, wait_ms in enumerate(waits_ms):
        assert 100 * (place // 2) - 1 <= wait_ms <= 100 * (place // 2) + 400, "never too early; late where all is slow"
    assert counters.generation_tokens == 60


def test_a_launch_keeps_its_shift_and_the_next_one_draws_another(tmp_path) -> None:
    flags = ("--launch-sd", "0.1", "--launch-counter", str(tmp_path / "launches"), "--noise-seed", "s")
    factors = []
    for _ in range(2):
        with reference_server(*flags) as server:
            factors.append(server.control("configuration")["launch_factor"])
    assert factors == [launch_shift(sd=0.1, seed="s", launch=0), launch_shift(sd=0.1, seed="s", launch=1)]
    assert factors[0] != factors[1]


def test_noise_has_the_spread_and_the_memory_asked_for() -> None:
    noise = Noise(seed="n", phi=0.8, sd=0.2)
    logs = np.log([noise.request_factor() for _ in range(20_000)])
    assert np.std(logs) == pytest.approx(0.2, rel=0.1)
    assert np.corrcoef(logs[:-1], logs[1:])[0, 1] == pytest.approx(0.8, abs=0.03)
    exponential = Noise(seed="e", exponential=True)
    assert statistics.mean(exponential.request_factor() for _ in range(20_000)) == pytest.approx(1.0, abs=0.03)
    still = Noise(seed="0")
    assert (still.request_factor(), still.gap_factor()) == (1.0, 1.0)
    jittery = Noise(seed="j", jitter=0.1)
    assert np.std(np.log([jittery.gap_factor() for _ in range(5_000)])) == pytest.approx(0.1, rel=0.1)


def test_it_speaks_to_the_control_client_as_vllm_does() -> None:
    with reference_server("--legacy-metrics") as server, ControlClient(server.base_url) as control:
        assert control.is_healthy()
        control.require_model(MODEL)
        assert control.context_tokens(MODEL) == 4096
        assert control.first_token(MODEL).text == " tok tok tok tok"
        counters, page = control.counters(), control.metrics_text()
    assert counters.generation_tokens == 4
    assert counters.prefix_cache_queries == 0
    assert 'vllm:time_per_output_token_seconds_count{engine="0",model_name="reference"} 3.0' in page
    assert 'vllm:time_to_first_token_seconds_count{engine="0",model_name="reference"} 1.0' in page


def test_only_each_nth_answer_is_hostile() -> None:
    with reference_server("--shape", "in-band-error", "--shape-every", "3", "--ttft-ms", "1") as server:
        run = load(server, small(requests=9, max_concurrency=1))
    assert [record.succeeded for record in run.records] == [True, True, False] * 3


def test_a_stall_stops_the_whole_process() -> None:
    with reference_server() as server:
        stall = server.control("stall/0.2")
        port = int(server.base_url.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port)).close()
    assert stall["to_ns"] - stall["from_ns"] >= 200_000_000


def test_it_is_launched_as_an_engine_and_its_flags_plant_effects(tmp_path) -> None:
    config = EngineConfig(
        name="eager",
        model="some/model",
        args={"enforce-eager": True, "max-num-seqs": 3},
        command=(sys.executable, str(SERVER), "--effect", "flag=enforce-eager:tpot*1.5", "--tpot-ms", "2"),
    )
    environment = gather_environment(tmp_path, gpus=(), driver=None)
    pool = EnginePool(engines={"eager": config}, environment=environment, directory=tmp_path)
    try:
        engine = pool.acquire("eager")
        with urllib.request.urlopen(f"{engine.base_url}/reference/configuration") as answer:
            told = json.load(answer)
        summary = measure(engine, small(input_tokens=16, output_tokens=20))
    finally:
        pool.close()
    assert (told["tpot_s"], told["slots"]) == (pytest.approx(0.003), 3)
    assert summary.invalid == ()
    assert summary.metrics["tpot_p50"].value >= 0.0027  # 2 ms without the effect; a late first token shortens it
