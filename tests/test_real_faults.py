"""The fault plan's tier R: the same faults on real vLLM (`make test-real`; a few minutes, five starts)."""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from pytest_command import PYTEST
from test_pool import CPU, choose
from traces import until

from pytest_vllmperf.adapters import engine_command
from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.adapters.guardian.state import _shared_memory_of
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import EngineError, EngineExited
from pytest_vllmperf.measurement import measure
from pytest_vllmperf.pool import EnginePool
from pytest_vllmperf.watch import Life

MODEL = str(Path(__file__).parents[1] / "suites" / "models" / "tinymath")
ARGS = {"enforce-eager": True, "gpu-memory-utilization": 0.3, "max-model-len": 2048, "max-num-seqs": 8}
LONG = Workload(
    name="long", input_tokens=64, output_tokens=256, requests=600, request_rate=4.0, max_error_rate=1.0
)  # the engine's watcher, not the count of failures, is to end it
START_S = 300.0

pytestmark = [
    pytest.mark.real_faults,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

CONFTEST = f"""
from pytest_vllmperf import EngineConfig, Workload

def pytest_vllmperf_engines(config):
    return [EngineConfig(name="real", model={MODEL!r}, args={ARGS!r})]

def pytest_vllmperf_workloads(config):
    return [
        Workload(name="short", input_tokens=16, output_tokens=8, requests=2, max_concurrency=1),
        Workload(name="long", input_tokens=64, output_tokens=256, requests=600, request_rate=4.0),
    ]
"""
SUITE = """
import pytest

@pytest.mark.parametrize("workload", ["short", "long"])
def test_speed(vllm_measure, workload):
    vllm_measure(workload)
"""


class Tree:
    """Every process of an engine, and the shared memory they hold."""

    def __init__(self, leader: int) -> None:
        members = [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]
        self.processes = members
        self.names = {p.pid: " ".join(p.cmdline()) or p.name() for p in members}
        self.shared = set().union(*(_shared_memory_of(p.pid) for p in members))

    def left(self) -> list[str]:
        alive = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(self.names[process.pid])
        inodes = {(p.stat().st_dev, p.stat().st_ino): p.name for p in Path("/dev/shm").iterdir()}
        return alive + [inodes[file] for file in self.shared if file in inodes]

    def gone_after(self, since: float, *, limit_s: float) -> float:
        while left := self.left():
            assert time.monotonic() - since < limit_s, f"still there after {limit_s} s: {left}"
            time.sleep(0.01)
        return time.monotonic() - since


def core_of(handle) -> psutil.Process:
    """The process that does the work; its lines in the log name it."""
    found = re.search(r"\(EngineCore\w* pid=(\d+)\)", Path(handle.log_path).read_text())
    assert found
    return psutil.Process(int(found[1]))


def tell(row: str, text: str) -> None:
    print(f"{row}: {text}")  # -rP shows it


@pytest.fixture
def session(tmp_path, monkeypatch):
    """pytest on a real engine under load, and its engine's tree."""
    for name in ("CI", "MODEL", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(SUITE)
    out = tmp_path / "out"
    with out.open("wb") as sink:
        process = subprocess.Popen(
            (*PYTEST, "-v", "--vllmperf-record-only", "--rootdir", str(tmp_path)),
            cwd=tmp_path,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: re.search(r": long: (?!warm)", out.read_text()) or process.poll() is not None, START_S)
        found = re.search(r"real: starting \(pid (\d+)", out.read_text())
        assert found, out.read_text()
        yield process, Tree(int(found[1])), tmp_path
    finally:
        process.kill()
        process.wait()


def test_nothing_of_vllm_is_left_two_seconds_after_pytest_was_killed(session):
    """L01: and the result of the test before is on disk."""
    process, tree, folder = session
    process.kill()
    took_s = tree.gone_after(time.monotonic(), limit_s=2.0)
    tell("L01", f"nothing left after {took_s:.2f} s ({len(tree.processes)} processes, {len(tree.shared)} segments)")
    assert '"short"' in "".join(p.read_text() for p in (folder / "reports" / "latest").glob("*.jsonl"))


def test_ctrl_c_in_the_middle_of_a_measurement_leaves_nothing(session):
    """L02."""
    process, tree, folder = session
    since = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    took_s = tree.gone_after(since, limit_s=7.0)
    assert process.wait(30) == 2, (folder / "out").read_text()
    tell("L02", f"nothing left after {took_s:.2f} s, exit code 2 after {time.monotonic() - since:.2f} s")


@pytest.fixture
def pool(tmp_path):
    pools = []

    def make(**changes):
        config = EngineConfig(**{"name": "one", "model": MODEL, "args": ARGS, **changes})
        pools.append(EnginePool(engines={"one": config}, environment=CPU, directory=tmp_path / "logs"))
        return pools[-1]

    yield make
    for made in pools:
        made.close()


def test_evidence_a_hang_and_a_stop_with_open_streams(pool):
    """O06, C02, L13: one start for three rows."""
    engines = pool(stall_timeout_s=3.0)
    handle = engines.acquire("one")
    tree = Tree(handle.pid)

    with ControlClient(handle.base_url, handle.api_key) as control:  # O06
        states = {item.optimisation: (item.state, item.source) for item in handle.evidence()}
        assert states["prefix caching"][0] == "confirmed"
        assert 'enable_prefix_caching="True"' in control.metrics_text()
        before = control.counters().prefix_cache_hits
        ask(handle, "one two three four five six seven eight nine ten " * 20)
        ask(handle, "one two three four five six seven eight nine ten " * 20)
        hits = control.counters().prefix_cache_hits - before
        assert hits > 0
        tell("O06", f"{hits} tokens found in the prefix cache, {len(states)} optimisations judged")

    core = core_of(handle)
    with Life(handle) as life, streams(handle, 2):  # C02
        core.suspend()
        since = time.monotonic()
        until(life.verdict, 60)
        with ControlClient(handle.base_url, handle.api_key) as control:
            assert control.is_healthy()
        tell("C02", f"hang noticed after {time.monotonic() - since:.1f} s (limit 3 s and a probe of 3 s)")
        assert "the engine hangs: it answers /health" in life.verdict()
        core.resume()

    with streams(handle, 2):  # L13
        since = time.monotonic()
        engines.release("one")
        took_s = tree.gone_after(since, limit_s=7.5)
    tell("L13", f"stopped with two open streams after {took_s:.2f} s, nothing left")


def ask(handle, prompt):
    answer = httpx.post(
        f"{handle.base_url}/v1/completions",
        headers={"Authorization": f"Bearer {handle.api_key}"},
        json={"model": handle.model_name, "prompt": prompt, "max_tokens": 2},
        timeout=60,
    )
    answer.raise_for_status()


@contextlib.contextmanager
def streams(handle, count):
    """Requests under way, until the server ends them."""
    body = {"model": handle.model_name, "prompt": "1 +", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    begun = threading.Semaphore(0)

    def follow():
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream(
                "POST",
                f"{handle.base_url}/v1/completions",
                headers={"Authorization": f"Bearer {handle.api_key}"},
                json=body,
                timeout=120,
            ) as answer,
        ):
            for _line in answer.iter_lines():
                begun.release()

    threads = [threading.Thread(target=follow, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in range(count):
        assert begun.acquire(timeout=60)
    yield
    # they end with the server, or with the test process


def test_an_engine_core_killed_under_load_is_noticed_within_a_second(pool):
    """C01, C04."""
    engines = pool()
    handle = engines.acquire("one")
    tree = Tree(handle.pid)
    killed_at: list[float] = []
    killers: list[threading.Thread] = []

    def finished() -> int:
        with ControlClient(handle.base_url, handle.api_key) as control:
            return control.counters().requests_finished or 0

    def kill_after(count: int) -> None:
        until(lambda: time.sleep(0.2) or finished() >= count, 120)  # each look takes the server time
        killed_at.append(time.monotonic())
        core_of(handle).kill()

    def when_measuring(line: str) -> None:
        if "long: warm-up" not in line and not killers:
            killers.append(threading.Thread(target=kill_after, args=(finished() + 2,)))
            killers[0].start()

    noticed: list[float] = []

    def follow(life: Life) -> None:
        until(life.verdict, 120)
        noticed.append(time.monotonic())

    with Life(handle) as life:
        watching = threading.Thread(target=follow, args=(life,))
        watching.start()
        summary = measure(handle, LONG, progress=when_measuring)
        over_at = time.monotonic()
        watching.join(30)
    tell(
        "C01",
        f"noticed {noticed[0] - killed_at[0]:.2f} s after the kill, load over after "
        f"{over_at - killed_at[0]:.2f} s; {summary.failures}",
    )
    assert noticed[0] - killed_at[0] < 5.0  # 0.8 s when it was measured
    assert over_at - killed_at[0] < 10.0
    assert summary.completed > 0
    assert summary.completed + sum(summary.failures.values()) == summary.requests
    since = time.monotonic()
    with pytest.raises(EngineError, match=r"engine 'one' (ended with code 0|does not answer)"):
        engines.ensure_alive("one", serves=True)
    tell("C04", f"nothing left {tree.gone_after(since, limit_s=12.0):.2f} s after it was asked about")


def test_start_failures_are_told_with_the_right_advice(pool, monkeypatch):
    """S16: a model that is nowhere, a flag nobody knows, a port somebody took."""
    for row, changes, said in (
        (
            "model",
            {"model": "nobody/no-such-model", "env": {"HF_HUB_OFFLINE": "1"}},
            r"\[(model-offline|model-not-found)\]",
        ),
        ("flag", {"args": {**ARGS, "no-such-flag": 1}}, "unrecognized arguments: --no-such-flag 1"),
    ):
        since = time.monotonic()
        with pytest.raises(EngineError, match=f"(?s){said}"):
            pool(**changes).acquire("one")
        tell(f"S16 {row}", f"told {time.monotonic() - since:.1f} s after it was asked for")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        choose(monkeypatch, port, port)
        monkeypatch.setattr(engine_command, "is_port_free", lambda _port: True)
        since = time.monotonic()
        with pytest.raises(EngineExited, match=r"\[port-taken\]"):
            pool().acquire("one")
        tell("S16 port", f"two starts on a taken port told after {time.monotonic() - since:.1f} s")
