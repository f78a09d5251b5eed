"""Faults of whole pytest runs: pytest, a worker or the guardian is killed, Ctrl-C once and twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pytest_command import PYTEST
from traces import PATIENCE_S, POLITE, STUBBORN, no_trace_afterwards, traces_in, until

CONFTEST = """
from pytest_vllmperf import EngineConfig

def pytest_vllmperf_engines(config):
    return [EngineConfig(name=name, model="fake", command=command) for name, command in {engines!r}.items()]
"""

WAITING = """
import pathlib, time

def test_waits(vllm_engine):
    pathlib.Path({folder!r}, "ready-" + vllm_engine.name).touch()
    time.sleep(60)
"""


FAKE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where engines report, and the user's runtime directory for notes; nothing that reported outlives the test."""
    for name in ("CI", "MODEL", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "told").mkdir()
    with no_trace_afterwards(tmp_path / "told"):
        yield tmp_path


def write(folder, suite=WAITING, *, stubborn=("one",), plain=(), command=STUBBORN):
    engines = {name: (*command, str(folder / "told")) for name in stubborn} | dict.fromkeys(plain, FAKE)
    (folder / "conftest.py").write_text(CONFTEST.format(engines=engines))
    (folder / "test_it.py").write_text(suite.format(folder=str(folder)))


@contextlib.contextmanager
def running(folder, *arguments):
    """``pytest`` in a process group of its own, as a terminal would start it."""
    command = (*PYTEST, "--vllmperf-record-only", *arguments)
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ready(folder, *names):
    """The traces of the engines, once a test holds each."""
    until(lambda: all((folder / f"ready-{name}").exists() for name in names))
    return traces_in(folder / "told", len(names))


def test_nothing_is_left_two_seconds_after_pytest_was_killed(folder):
    """L01, L11."""
    write(folder)
    with running(folder) as process:
        (traces,) = ready(folder, "one")
        process.kill()
        traces.assert_gone(time.monotonic())
    until(lambda: list((folder / "run").rglob("*.json")) == [])


def test_nothing_is_left_two_seconds_after_a_test_left_by_the_back_door(folder):
    """L06: as pytest-timeout's thread method does."""
    suite = WAITING.replace("import pathlib", "import os, pathlib").replace("time.sleep(60)", "os._exit(1)")
    write(folder, suite)
    with running(folder) as process:
        (traces,) = ready(folder, "one")
        assert process.wait(PATIENCE_S) == 1
        traces.assert_gone(time.monotonic())


def test_ctrl_c_ends_the_run_with_code_2_and_nothing_left(folder):
    """L02."""
    write(folder, command=POLITE)
    with running(folder) as process:
        (traces,) = ready(folder, "one")
        os.killpg(process.pid, signal.SIGINT)
        traces.assert_gone(time.monotonic(), limit_s=7.0)
        assert process.wait(PATIENCE_S) == 2


def test_a_second_ctrl_c_cuts_the_grace_short(folder):
    """L03."""
    write(folder)
    with running(folder) as process:
        (traces,) = ready(folder, "one")
        since = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        until(lambda: "leader" not in traces.alive())  # the request to stop was sent
        os.killpg(process.pid, signal.SIGINT)
        traces.assert_gone(since, limit_s=3.0)
        assert process.wait(PATIENCE_S) == 2
    assert "pool.close" not in (folder / "out").read_text()  # no traceback of ours


def test_a_killed_worker_takes_its_engine_along_and_leaves_the_others(folder):
    """L15."""
    write(folder, stubborn=("one", "two"), command=POLITE)
    with running(folder, "-n2", "--vllmperf-share-cpu") as process:
        first, second = ready(folder, "one", "two")
        worker = psutil.Process(psutil.Process(first.witness).ppid())
        assert worker.ppid() == process.pid
        worker.kill()
        first.assert_gone(time.monotonic())
        assert set(second.alive()) == set(second.processes)
        process.kill()  # its other worker lives on for seconds
        second.assert_gone(time.monotonic())


def test_a_killed_guardian_is_named_and_the_next_engine_goes_on(folder):
    """L09."""
    suite = """
import os, psutil, signal
from pytest_vllmperf import Workload

def test_kills(vllm_engine):
    if vllm_engine.name == "one":
        os.kill(psutil.Process(vllm_engine.pid).ppid(), signal.SIGKILL)

def test_measures(vllm_measure):
    vllm_measure(Workload(name="tiny", input_tokens=8, output_tokens=4, requests=2, max_concurrency=1))
"""
    write(folder, suite, plain=("two",))
    with running(folder) as process:
        assert process.wait(PATIENCE_S) == 1
    out = (folder / "out").read_text()
    assert "engine 'one' ended because its guardian was killed" in out
    assert "1 failed, 3 passed" in out
    (told,) = (folder / "told").glob("*.json")
    assert [path for path in json.loads(told.read_text())["files"] if Path(path).exists()] == []


def test_the_next_run_ends_what_was_left_and_says_so(folder):
    """L10."""
    write(folder)
    with running(folder) as process:
        (traces,) = ready(folder, "one")
        traces.processes["pytest"] = psutil.Process(process.pid)
        traces.kill("pytest", "guardian", "witness")
    until(lambda: not traces.alive("leader", "guardian", "witness"))  # the kernel ends them in its own time
    assert traces.alive() == ["in_group", "escaped"]
    pids = sorted(traces.pids[name] for name in ("in_group", "escaped"))
    write(folder, "def test_it(vllm_engine):\n    pass\n", stubborn=(), plain=("one",))
    with running(folder, "-s") as process:
        assert process.wait(PATIENCE_S) == 0
    assert f"ended processes an earlier run had left: {pids[0]}, {pids[1]}" in (folder / "out").read_text()
    assert traces.left() == []
