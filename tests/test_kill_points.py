"""Two hundred seeded moments to be killed at while results are written (fault plan, D01)."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from pytest_vllmperf.adapters.benchmark_storage import save_run
from pytest_vllmperf.adapters.history import stored_runs
from pytest_vllmperf.adapters.run_journal import JournalWriter, read_journal

POINTS = 200


def killed_while(write, ready: Path, delay_s: float) -> int:
    """Fork a writer, kill it ``delay_s`` after its first record; how many it says are written."""
    told, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(told)
            for number in range(10_000):
                write(number)
                os.write(say, b"x")
                ready.touch()
        finally:
            os._exit(0)
    os.close(say)
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(delay_s)  # the seeded moment
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(told, "rb") as pipe:
        return len(pipe.read())


@pytest.fixture
def moments():
    return [random.Random(seed).uniform(0.0, 0.02) for seed in range(POINTS // 2)]


def test_a_journal_loses_at_most_the_record_being_written(tmp_path, moments):
    """D01."""
    payload = "v" * 40_000
    for place, delay_s in enumerate(moments):
        path = tmp_path / str(place) / "results.jsonl"
        journal = JournalWriter(path)
        journal.start({"started_at": "now"})
        acknowledged = killed_while(
            lambda number, j=journal: j.test({"number": number, "payload": payload}), path.with_name("ready"), delay_s
        )
        journal._file.close()  # this process's end of it
        found = read_journal(path)
        numbers = [line["number"] for line in found.tests]
        assert numbers == list(range(len(numbers)))
        assert acknowledged <= len(numbers) <= acknowledged + 1
        assert all(line["payload"] == payload for line in found.tests)
        assert len(found.warnings) <= 1


def test_history_loses_at_most_the_run_being_written_and_earlier_files_stay_as_they_were(tmp_path, moments):
    """D01."""
    storage = tmp_path / "storage"
    storage.mkdir()
    content = {"datetime": "2026-01-01T00:00:00+00:00", "benchmarks": [], "machine_info": {"filling": ["x" * 99] * 999}}
    for place, delay_s in enumerate(moments):
        before = {path: path.read_bytes() for path in storage.glob("*/*.json")}
        acknowledged = killed_while(
            lambda _number: save_run(storage, content, hardware="CPU", name="run"), tmp_path / f"ready-{place}", delay_s
        )
        after = {path: path.read_bytes() for path in storage.glob("*/*.json")}
        assert {path: after[path] for path in before} == before
        assert acknowledged <= len(after) - len(before) <= acknowledged + 1
        for path in after.keys() - before.keys():
            assert json.loads(after[path]) == content
        for path in list(after)[8:]:
            path.unlink()  # keep the folder small: every file is compared each time
    read = stored_runs(storage)
    assert read.runs
    assert read.warnings == ()
