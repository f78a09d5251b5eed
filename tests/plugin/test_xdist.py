"""Workers: each engine launched exactly once in the run, whatever the order, the selection and what breaks."""

import json
from collections import Counter

import pytest

pytest.importorskip("xdist")

# Stands before the fake engine, notes the launch and becomes the engine: launches are counted from outside.
NOTE_LAUNCH = """
import os
import sys

with open(sys.argv[1], "a") as ledger:
    ledger.write(os.environ["FAKE_NAME"] + "\\n")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

SUITE = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_alive(vllm_engine, number):
    assert vllm_engine.name
"""

SHUFFLE = """
import random

def pytest_collection_modifyitems(items):
    random.Random({seed}).shuffle(items)
"""

NAMES = ("one", "two", "three", "four")
ONCE = dict.fromkeys(NAMES, 1)


class Workers:
    """A project whose engines note their launches."""

    def __init__(self, project):
        self.project = project
        self.path = project.path
        self.ledger = project.path / "launches.txt"
        note = project.path / "note_launch.py"
        note.write_text(NOTE_LAUNCH)
        project.command = (project.command[0], str(note), str(self.ledger), *project.command[1:])

    def write(self, *engines, suite=SUITE, **kwargs):
        given = [{"name": e} if isinstance(e, str) else e for e in engines]
        named = [{"env": {"FAKE_NAME": e["name"]}, **e} for e in given]
        self.project.write(engines=named, suite=suite, **kwargs)

    def run(self, *args, share_cpu=True):
        self.ledger.write_text("")
        return self.project.run("--vllmperf-record-only", *(["--vllmperf-share-cpu"] * share_cpu), *args)

    def launches(self):
        return Counter(self.ledger.read_text().split())

    def stored(self):
        (path,) = self.project.history
        path.rename(self.path / "taken.json")
        return {b["fullname"]: b for b in json.loads((self.path / "taken.json").read_text())["benchmarks"]}


@pytest.fixture
def workers(project):
    return Workers(project)


# ---------------------------------------------------------------------- launches


@pytest.mark.parametrize(("count", "seed"), [(0, 1), (2, 2), (3, 3)])
def test_four_engines_are_launched_once_each_in_whatever_order_their_tests_come(workers, count, seed):
    workers.write(*NAMES, files={"shuffle.py": SHUFFLE.format(seed=seed)})
    result = workers.run(f"-n{count}", "-p", "shuffle")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    result.assert_outcomes(passed=16)
    assert workers.launches() == ONCE
    assert workers.project.launches() == ONCE


@pytest.mark.parametrize(("count", "seed"), [(0, 4), (2, 5)])
def test_pytest_randomly_changes_the_order_and_launches_nothing_twice(workers, count, seed):
    pytest.importorskip("pytest_randomly")
    workers.write(*NAMES)
    result = workers.run(f"-n{count}", "-p", "randomly", f"--randomly-seed={seed}", "-v")
    result.assert_outcomes(passed=16)
    assert f"Using --randomly-seed={seed}" in result.stdout.str()
    assert workers.launches() == ONCE


def test_only_selected_engines_are_launched_by_k_and_by_lf(workers):
    workers.write(*NAMES, suite=SUITE + "    assert (vllm_engine.name, number) != ('two', 3)\n")
    result = workers.run("-n2", "-k", "two or three")
    result.assert_outcomes(passed=7, failed=1)
    assert workers.launches() == {"two": 1, "three": 1}
    result = workers.run("-n2", "--lf")
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    assert workers.launches() == {"two": 1}


def test_a_crashed_worker_loses_the_test_in_flight_and_relaunches_its_engine_once(workers):
    crash = "    if (vllm_engine.name, number) == ('one', 1):\n        __import__('os')._exit(3)\n"
    workers.write("one", "two", suite=SUITE + crash)
    result = workers.run("-n2")
    assert result.ret == 1
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["*crashed while running*test_alive?one-1?*"])
    assert workers.launches() == {"one": 2, "two": 1}
    assert workers.project.launches() == {"one": 2, "two": 1}


def test_a_failing_launch_is_tried_once_and_its_tests_get_the_cause(workers):
    workers.write({"name": "broken", "args": {"fake-fail-start": "ValueError: broken on purpose"}}, "good")
    result = workers.run("-n2")
    assert result.ret == 1
    result.assert_outcomes(passed=4, errors=4)
    result.stdout.fnmatch_lines(["*broken on purpose*"])
    assert workers.launches() == {"broken": 1, "good": 1}


def test_collecting_only_launches_nothing_and_writes_nothing(workers):
    workers.write(*NAMES)
    result = workers.run("-n2", "--collect-only", "-q")
    assert result.ret == 0
    assert workers.launches() == {}
    assert not (workers.path / "reports").exists()
    assert not workers.project.history


def test_an_id_that_reads_like_another_engine_fails_instead_of_launching_twice(workers):
    suite = """
    import pytest

    @pytest.mark.vllm_engine("fp8")
    @pytest.mark.parametrize("cache", ["kv", "none"])
    def test_it(vllm_engine, cache):
        pass

    @pytest.mark.vllm_engine("fp8-kv")
    def test_other(vllm_engine):
        pass
    """
    workers.write("fp8", "fp8-kv", suite=suite)
    result = workers.run("-n2")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*test_it?fp8-kv? uses engine 'fp8', but its id reads like one of 'fp8-kv'*"])
    assert workers.launches() == {"fp8": 1, "fp8-kv": 1}


def test_without_sharing_the_cpu_an_engine_waits_for_the_other_and_says_for_whom(workers):
    workers.write("one", "two", suite=SUITE + "    __import__('time').sleep(0.4)\n")
    result = workers.run("-n2", share_cpu=False)
    result.assert_outcomes(passed=8)
    result.stdout.re_match_lines(
        [r".*> \[gw\d\] (one|two): waiting 1 s for the CPU .*, held by engine '(two|one)' of .*"]
    )
    assert workers.launches() == {"one": 1, "two": 1}


# ---------------------------------------------------------------------- modes


@pytest.mark.parametrize("mode", ["each", "worksteal"])
def test_a_mode_that_would_launch_engines_twice_is_a_usage_error(workers, mode):
    workers.write("one")
    result = workers.run("-n2", f"--dist={mode}")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*--dist={mode} would run one engine's tests on several workers*use -n N alone*"])
    assert workers.launches() == {}


def test_tests_without_engines_may_use_any_mode_and_are_not_gated(workers):
    plain = "import pytest\n\n@pytest.mark.parametrize('name', ['one', 'b'])\ndef test_plain(name):\n    pass\n"
    workers.write("one", suite=plain)
    result = workers.project.run("-n2", "--dist=worksteal", "-k", "b")
    assert result.ret == 0
    result = workers.project.run("-n2")
    assert result.ret == 0, "a parameter that is called like an engine makes no test use it"
    assert not (workers.path / "reports").exists()


def test_n_auto_starts_one_worker_on_a_machine_without_gpus(workers, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    workers.write("one", suite="def test_plain():\n    pass\n")
    workers.run("-nauto").stdout.fnmatch_lines(["created: 1/1 worker"])


# ---------------------------------------------------------------------- results

MEASURING = """
import pytest
from decimal import Decimal

import numpy as np

def test_first_token(vllm_measure, vllm_check, record_property):
    record_property("odd", [np.float64(1.5), np.int64(2), Decimal("0.1"), float("nan")])
    vllm_check(vllm_measure("tiny"), "ttft_mean", "ttft_p99")

def test_throughput(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "output_throughput")

def test_start(vllm_start_up, vllm_check):
    vllm_check(vllm_start_up, "time_to_ready")
"""


def test_results_are_the_same_with_and_without_workers(workers):
    workers.write("one", "two", suite=MEASURING)
    seen = []
    for count in (0, 2):
        result = workers.project.run(f"-n{count}", "--vllmperf-share-cpu", "-v")
        assert result.ret == 0, result.stdout.str() + result.stderr.str()
        result.stdout.fnmatch_lines(["vllmperf: engines one, two; 2 limits from thresholds.toml"])
        verdicts = {(v["engine"], v["workload"], v["metric"], v["outcome"]) for v in workers.project.report["verdicts"]}
        stored = workers.stored()
        names = {name for name in stored if "::steady_" not in name}  # a steady window is found in some short runs
        seen.append((verdicts, names, len(stored["one/tiny::ttft"]["stats"]["data"])))
    assert seen[0] == seen[1]
    assert {"one/tiny::ttft", "two/startup::time_to_ready"} <= seen[0][1]


def test_a_wrong_thresholds_file_is_told_once_before_any_engine_starts(workers):
    workers.write("one", thresholds="version = 1\n[[limit]]\nttft_meen = { max = '1 s' }\n")
    result = workers.run("-n2")
    assert result.ret == 4
    assert result.stderr.str().count("thresholds.toml: 1 problem") == 1
    assert workers.launches() == {}


def test_the_limits_are_read_by_the_controller_alone(workers):
    """A file that changes after the start changes nothing: all workers judge by one and the same."""
    suite = """
    import pathlib

    def test_first_token(vllm_measure, vllm_check):
        pathlib.Path(__file__).parents[1].joinpath("thresholds.toml").write_text("nonsense")
        vllm_check(vllm_measure("tiny"), "ttft_mean")
    """
    workers.write("one", suite=suite)
    result = workers.project.run("-n1", "-k", "first_token")
    assert result.ret == 0, result.stdout.str()


def test_an_internal_error_of_a_worker_is_never_green(workers):
    suite = """
    def test_plain(record_property):
        record_property("odd", object())
    """
    workers.write("one", suite=suite)
    result = workers.run("-n1")
    result.stdout.fnmatch_lines(["*DumpError*"])
    assert result.ret == 3
