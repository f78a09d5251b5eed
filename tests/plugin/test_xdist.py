"""Workers: each engine launched exactly once in the run, whatever the order, the selection and what breaks."""

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

MEASURING = """
def test_first_token(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")

def test_throughput(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "output_throughput")
"""

SHUFFLE = """
import random

def pytest_collection_modifyitems(items):
    random.Random({seed}).shuffle(items)
"""

NAMES = ("one", "two", "three", "four")


class Workers:
    """A project whose engines note their launches, run with workers that need not wait for each other."""

    def __init__(self, project):
        self.project = project
        self.path = project.path
        self.ledger = project.path / "launches.txt"
        note = project.path / "note_launch.py"
        note.write_text(NOTE_LAUNCH)
        project.command = (project.command[0], str(note), str(self.ledger), *project.command[1:])

    def write(self, *, engines=NAMES, suite=SUITE, **kwargs):
        given = [{"name": e} if isinstance(e, str) else e for e in engines]
        named = [{"env": {"FAKE_NAME": e["name"]}, **e} for e in given]
        self.project.write(engines=named, suite=suite, **kwargs)

    def run(self, *args):
        self.ledger.write_text("")
        return self.project.run("--vllmperf-record-only", *args)

    def launches(self):
        return Counter(self.ledger.read_text().split())


@pytest.fixture
def workers(project):
    return Workers(project)


ONCE = dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_four_engines_with_four_tests_each_are_launched_once_each(workers, count):
    workers.write()
    result = workers.run(f"-n{count}")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    result.assert_outcomes(passed=16)
    assert workers.launches() == ONCE
    assert workers.project.launches() == ONCE


@pytest.mark.parametrize(("count", "seed"), [(0, 1), (2, 1), (2, 2)])
def test_a_random_order_launches_nothing_twice(workers, count, seed):
    workers.write(files={"shuffle.py": SHUFFLE.format(seed=seed)})
    result = workers.run(f"-n{count}", "-p", "shuffle")
    result.assert_outcomes(passed=16)
    assert workers.launches() == ONCE
