"""Engines kept between runs: the same server again where nothing about it changed, and nothing left behind."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pytest_vllmperf.adapters import kept_engines

SUITE = """
def test_first_token(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean", "output_throughput")

def test_start(vllm_start_up, vllm_check):
    vllm_check(vllm_start_up, "time_to_ready")
"""


@pytest.fixture
def runtime(project, monkeypatch):
    """A runtime directory of the test's own; whatever is still kept there at the end is stopped."""
    folder = project.path / "runtime"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder / "pytest-vllmperf"
    for engine in kept_engines.kept_engines(folder / "pytest-vllmperf"):
        kept_engines.stop(folder / "pytest-vllmperf", engine)


def vllmperf(*arguments):
    command = [sys.executable, "-m", "pytest_vllmperf.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def kept():
    return json.loads(vllmperf("ps", "--json").stdout)


def alive(pid):
    return kept_engines.process_start(pid) is not None


def test_the_second_run_uses_the_first_ones_engine_and_says_so(project, runtime):
    project.write(suite=SUITE)
    assert project.run("--vllmperf-reuse").ret == 0
    (first,) = kept()
    assert (first["name"], first["runs"], first["used_now"]) == ("one", 1, False)
    assert alive(first["pid"])
    assert project.launches() == {"one": 1}

    again = project.run("--vllmperf-reuse")
    assert again.ret == 0, again.stdout.str()
    again.stdout.fnmatch_lines([f"*one: reusing pid {first['pid']}, launched 0 min ago (1 runs before)"])
    (engine,) = project.report["engines"]
    assert (engine["launches"], engine["reused"]) == (0, True)
    assert engine["warnings"] == ["served 1 earlier runs (--vllmperf-reuse): results are no baseline"]
    (second,) = kept()
    assert (second["pid"], second["runs"]) == (first["pid"], 2)

    fresh, reused = (json.loads(path.read_text())["benchmarks"] for path in project.history)
    assert {b["extra_info"]["baseline"] for b in fresh} == {True}
    assert {b["extra_info"]["baseline"] for b in reused} == {False}
    assert vllmperf("stop", "one").stdout == f"Stopped one (pid {first['pid']}).\n"
    assert not alive(first["pid"])
    assert kept() == []
    assert not list(runtime.glob("*.json")), "its guardian cleaned up"
    assert "No engine is kept" in vllmperf("ps").stdout


def test_prompts_are_others_than_those_its_prefix_cache_holds(project, runtime):
    project.write(suite=SUITE)
    for _ in range(2):
        result = project.run("--vllmperf-reuse")
        assert result.ret == 0, result.stdout.str()
    (engine,) = kept()
    with urllib.request.urlopen(f"{engine['base_url']}/fake/requests") as answer:
        prompts = [str(body["prompt"]) for body in json.load(answer) if body["max_tokens"] == 8]
    assert len(prompts) >= 12
    assert len(set(prompts)) == len(prompts)


def test_another_configuration_is_another_engine_and_idle_ones_make_room(project, runtime):
    project.write(suite=SUITE)
    project.run("--vllmperf-reuse")
    project.write(suite=SUITE, engines=[{"name": "one", "args": {"max-num-seqs": 7}}])
    assert project.run("--vllmperf-reuse").ret == 0
    assert project.launches() == {"one": 1}
    assert len({engine["pid"] for engine in kept()}) == 2, "on a CPU an idle engine is in nobody's way"
    assert vllmperf("stop", "--all").returncode == 0
    assert kept() == []


def test_a_run_without_the_option_neither_uses_nor_keeps(project, runtime):
    project.write(suite=SUITE)
    project.run("--vllmperf-reuse")
    (engine,) = kept()
    assert project.run().ret == 0
    assert project.launches() == {"one": 1}
    assert [e["runs"] for e in kept()] == [1]
    assert alive(engine["pid"])


def test_an_engine_in_use_is_not_stopped_and_not_shared(project, runtime):
    project.write(suite=SUITE)
    project.run("--vllmperf-reuse")
    (engine,) = kept_engines.kept_engines(runtime)
    mine = kept_engines.Borrowed(runtime, engine.fingerprint)
    assert mine.take()
    refused = vllmperf("stop", "--all")
    assert refused.returncode == 1
    assert "a run uses it; --force stops it anyway" in refused.stdout
    result = project.run("--vllmperf-reuse")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*one: another run uses the engine that is kept; starting one of our own"])
    mine.give_back()


def test_an_engine_that_died_is_launched_again(project, runtime):
    project.write(suite=SUITE)
    project.run("--vllmperf-reuse")
    (engine,) = kept_engines.kept_engines(runtime)
    os.kill(engine.pid, 9)
    for guardian in engine.guardians:  # which clean up once their engine is gone
        while kept_engines.process_start(guardian) is not None:
            pass
    assert kept() == []
    assert project.run("--vllmperf-reuse").ret == 0
    assert project.launches() == {"one": 1}


def test_a_run_that_is_killed_leaves_the_engine_and_one_killed_before_it_was_ready_does_not(project, runtime):
    killed = SUITE + "\ndef test_last(vllm_engine):\n    __import__('os').kill(__import__('os').getpid(), 9)\n"
    project.write(suite=killed)
    assert project.run("--vllmperf-reuse").ret < 0
    (engine,) = kept()
    assert alive(engine["pid"])
    assert not engine["used_now"]


def test_an_engine_nobody_uses_ends_by_itself(project, runtime, monkeypatch):
    sitecustomize = project.path / "lib" / "sitecustomize.py"
    sitecustomize.parent.mkdir()
    sitecustomize.write_text("import pytest_vllmperf.keeping as k\nk.IDLE_S = 0.5\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(sitecustomize.parent), str(Path(__file__).parents[2]))))
    project.write(suite=SUITE)
    project.run("--vllmperf-reuse")
    while kept():
        pass
    assert not list(runtime.glob("*.json"))


def test_stopping_nothing_in_particular_is_refused(runtime):
    refused = vllmperf("stop")
    assert (refused.returncode, refused.stderr) == (2, "vllmperf: name the engines to stop, or say --all; kept: none\n")
    assert "no engine 'one' is kept; kept: none" in vllmperf("stop", "one").stderr
