"""Leases between real processes: exclusive, all or nothing, gone with their holder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pytest_vllmperf
from pytest_vllmperf.adapters.leases import HostLeases, lease_directory
from pytest_vllmperf.errors import EngineError

ROOT = Path(pytest_vllmperf.__file__).parent.parent
GPUS = ("GPU-a", "GPU-b", "GPU-c")

HOLDER = """
import sys
from pathlib import Path
from pytest_vllmperf.adapters.leases import HostLeases

leases = HostLeases(Path(sys.argv[1]), share_cpu=False, project="/other/project")
print(*leases.take("theirs", gpus=sys.argv[3:], count=int(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def leases(tmp_path):
    """Leases of this process; whatever a test left held is given back."""
    held = HostLeases(tmp_path / "locks", share_cpu=False, project="/my/project")
    yield held
    for engine in list(held._held):
        held.give_back(engine)


@pytest.fixture
def other_process(tmp_path):
    """``other_process(count, *gpus)`` takes a lease in a process of its own, which ends when its stdin does."""
    started = []

    def start(count, *gpus):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "locks"), str(count), *gpus],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().split()

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Waiting:
    """Takes a lease in a thread and notes what it was told meanwhile."""

    def __init__(self, leases, engine, gpus, count):
        self.told, self.heard, self.got = [], threading.Event(), None
        self.thread = threading.Thread(target=self._take, args=(leases, engine, gpus, count))
        self.thread.start()

    def _take(self, leases, engine, gpus, count):
        self.got = leases.take(engine, gpus=gpus, count=count, waiting=self._hear)

    def _hear(self, line):
        self.told.append(line)
        self.heard.set()

    def result(self):
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.got


def test_two_processes_never_get_one_gpu(leases, other_process):
    _, theirs = other_process(1, *GPUS)
    ours = leases.take("ours", gpus=GPUS, count=2)
    assert theirs == ["GPU-a"]
    assert ours == ("GPU-b", "GPU-c")


def test_waiting_names_the_holder_and_ends_when_the_holder_is_killed(leases, other_process):
    process, _ = other_process(2, *GPUS)
    waiting = Waiting(leases, "ours", GPUS, 2)
    assert waiting.heard.wait(30)
    assert waiting.got is None
    process.kill()
    assert waiting.result() == ("GPU-a", "GPU-b")
    assert waiting.told[0].startswith("ours: waiting 1 s for 2 of 3 GPUs, held by ")
    assert f"engine 'theirs' of /other/project (pid {process.pid})" in waiting.told[0]


def test_whoever_waits_for_several_holds_none_of_them(leases, other_process):
    one, _ = other_process(1, *GPUS)
    waiting = Waiting(leases, "wide", GPUS, 3)
    assert waiting.heard.wait(30)
    two, second = other_process(2, *GPUS)
    assert second == ["GPU-b", "GPU-c"]
    one.kill()
    two.kill()
    assert waiting.result() == GPUS


def test_what_is_given_back_is_free_for_others(leases, other_process):
    leases.take("ours", gpus=GPUS, count=3)
    leases.give_back("ours")
    leases.give_back("ours")
    _, theirs = other_process(3, *GPUS)
    assert theirs == list(GPUS)


def test_on_a_cpu_engines_of_two_processes_take_turns(leases, other_process):
    process, _ = other_process(1)
    waiting = Waiting(leases, "ours", (), 1)
    assert waiting.heard.wait(30)
    assert "the CPU (--vllmperf-share-cpu to run beside), held by engine 'theirs'" in waiting.told[0]
    process.kill()
    assert waiting.result() == ()


def test_a_shared_cpu_is_not_waited_for(tmp_path, other_process):
    other_process(1)
    assert HostLeases(tmp_path / "locks", share_cpu=True, project="p").take("ours", gpus=(), count=1) == ()


def test_engines_of_one_process_hold_the_cpu_together_until_the_last_is_done(leases, other_process):
    leases.take("one", gpus=(), count=1)
    leases.take("two", gpus=(), count=1)
    leases.give_back("one")
    elsewhere = HostLeases(leases._directory, share_cpu=False, project="p")  # flock tells open files apart
    waiting = Waiting(elsewhere, "three", (), 1)
    assert waiting.heard.wait(30)
    leases.give_back("two")
    assert waiting.result() == ()
    elsewhere.give_back("three")


def test_every_user_of_the_host_may_use_the_files(leases):
    previous = os.umask(0o077)
    try:
        leases.take("ours", gpus=GPUS, count=3)
    finally:
        os.umask(previous)
    assert leases._directory.stat().st_mode & 0o7777 == 0o1777
    files = list(leases._directory.iterdir())
    assert {path.name for path in files} == {"all.lock", "GPU-a.lock", "GPU-b.lock", "GPU-c.lock"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666}


def test_a_link_in_place_of_a_lock_file_is_refused(leases):
    """V10, X07."""
    leases._directory.mkdir()
    victim = leases._directory.parent / "victim"
    victim.write_text("precious")
    (leases._directory / "GPU-a.lock").symlink_to(victim)
    with pytest.raises(EngineError, match=r"engines cannot be kept from each other: .*GPU-a.lock.*VLLMPERF_LOCK_DIR"):
        leases.take("ours", gpus=GPUS, count=1)
    assert victim.read_text() == "precious"


def test_a_folder_that_cannot_be_made_says_what_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    leases = HostLeases(tmp_path / "file" / "locks", share_cpu=False, project="p")
    with pytest.raises(EngineError, match="set VLLMPERF_LOCK_DIR to a folder that everybody"):
        leases.take("ours", gpus=GPUS, count=1)


def test_the_folder_is_one_for_the_host_unless_the_environment_names_another(monkeypatch):
    monkeypatch.delenv("VLLMPERF_LOCK_DIR")
    monkeypatch.setenv("TMPDIR", "/somewhere/else")
    assert lease_directory() == Path("/tmp/vllmperf-locks")
    monkeypatch.setenv("VLLMPERF_LOCK_DIR", "/run/gpus")
    assert lease_directory() == Path("/run/gpus")


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    """V10."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="is a link, which somebody may have prepared"):
        HostLeases(tmp_path / "locks").take("ours", gpus=GPUS, count=1)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(("kind", "refused"), [("nfs4", True), ("ext4", False)])
def test_a_network_file_system_is_refused(tmp_path, monkeypatch, kind, refused):
    """V10: its locks do not hold between hosts, or at all."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\nproc /proc proc rw 0 0\n")
    monkeypatch.setattr("pytest_vllmperf.adapters.leases._MOUNTS", mounts)
    held = HostLeases(tmp_path / "locks")
    if refused:
        with pytest.raises(EngineError, match=f"lies on a network file system .{kind}., whose locks do not hold"):
            held.take("ours", gpus=GPUS, count=1)
    else:
        held.take("ours", gpus=GPUS, count=1)
        held.give_back("ours")
