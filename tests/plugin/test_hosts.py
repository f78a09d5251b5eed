"""Workers on several hosts: two socket servers on loopback, each with a host's name, hardware, leases and folders."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("xdist")
ROOT = Path(__file__).parents[2]

# Run by every Python of a "host": gives it a name and a CPU of its own.
HOST = """
import os
import platform

if name := os.environ.get("FAKE_HOST"):
    platform.node = lambda: name
    import pytest_vllmperf.adapters.environment as environment
    environment._cpu_model = lambda: os.environ["FAKE_CPU"]
"""

SUITE = """
import os
import pathlib

def test_first_token(vllm_measure, vllm_check, vllm_engine):
    locks = pathlib.Path(os.environ["VLLMPERF_LOCK_DIR"])
    assert any(vllm_engine.name in path.read_text() for path in locks.glob("*.lock"))
    vllm_check(vllm_measure("tiny"), "ttft_mean")

def test_throughput(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "output_throughput")
"""


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def hosts(project, monkeypatch):
    """Starts a socket server for each (name, CPU); the execution specs of all."""
    (project.path / "lib").mkdir()
    (project.path / "lib" / "sitecustomize.py").write_text(HOST)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(project.path / "lib"), str(ROOT))))
    with ExitStack() as stack:

        def start(*wanted: tuple[str, str], workers: int = 1) -> list[str]:
            specs = []
            for name, cpu in wanted:
                port, own = free_port(), project.path / f"of-{name}"
                own.mkdir()
                env = {**os.environ, "FAKE_HOST": name, "FAKE_CPU": cpu}
                env |= {"VLLMPERF_LOCK_DIR": str(own / "locks"), "XDG_RUNTIME_DIR": str(own)}
                command = [sys.executable, "-m", "execnet.script.socketserver", f"127.0.0.1:{port}"]
                server = subprocess.Popen(
                    command, env=env, cwd=project.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                stack.callback(server.wait)
                stack.callback(server.kill)
                while not listening(port):
                    assert server.poll() is None
                specs += ["--px", f"id={name}//socket=127.0.0.1:{port}//execmodel=thread"]
                specs += ["--tx", f"{workers}*popen//via={name}"]
            return specs

        yield start


def test_two_hosts_launch_each_engine_once_and_say_where_it_ran(project, hosts):
    project.write(engines=[{"name": name} for name in ("one", "two", "three")], suite=SUITE)
    result = project.run("-d", *hosts(("host-a", "Same"), ("host-b", "Same"), workers=2), "-v")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    result.assert_outcomes(passed=6)
    assert project.launches() == {"one": 1, "two": 1, "three": 1}
    ran_on = {engine["name"]: engine["warnings"][-1] for engine in project.report["engines"]}
    here = project.report["environment"]["host"]
    assert set(ran_on.values()) == {f"ran on {name} (CPU Same), not on {here}" for name in ("host-a", "host-b")}
    result.stdout.fnmatch_lines(["created: 4/4 workers"])
    for name in ("host-a", "host-b"):
        assert not list((project.path / f"of-{name}" / "pytest-vllmperf").glob("*.json")), "its engines are gone"
    (stored,) = project.history
    assert stored.parent.name == "CPU-Same"
    benchmarks = json.loads(stored.read_text())["benchmarks"]
    (told,) = {tuple(sorted(b["extra_info"]["hosts"].items())) for b in benchmarks}
    assert {f"ran on {host} (CPU Same), not on {here}" for _, host in told} == set(ran_on.values())
    assert [name for name, _ in told] == ["one", "three", "two"]


def test_hosts_of_different_hardware_write_a_history_each_and_meet_their_own_limits(project, hosts):
    limits = """
    version = 1
    [[limit]]
    match = { hardware = "CPU Fast" }
    ttft_mean = { max = "60 s" }
    output_throughput = { min = "0.001 tok/s" }
    [[limit]]
    match = { hardware = "CPU Slow" }
    ttft_mean = { max = "1 ns" }
    """
    project.write(engines=[{"name": "one"}, {"name": "two"}], suite=SUITE, thresholds=limits)
    result = project.run("-d", *hosts(("host-a", "Fast"), ("host-b", "Slow")))
    assert result.ret == 1
    outcomes = Counter((v["metric"], v["outcome"]) for v in project.report["verdicts"] if v["limit"])
    assert outcomes["ttft_mean", "PASS"] == outcomes["ttft_mean", "FAIL"] == 1
    assert sorted(path.parent.name for path in project.history) == ["CPU-Fast", "CPU-Slow"]
    engines = [{b["extra_info"]["engine"] for b in json.loads(p.read_text())["benchmarks"]} for p in project.history]
    assert len(engines[0]) == len(engines[1]) == 1
    assert engines[0] != engines[1]
