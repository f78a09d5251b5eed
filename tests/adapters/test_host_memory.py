"""Host memory of real process trees."""

import os
import subprocess
import sys

import pytest

from pytest_vllmperf.adapters import host_memory
from pytest_vllmperf.adapters.host_memory import HostMemory, process_tree_pss_bytes, resident_bytes

MIB = 2**20
TREE = """
import os, sys
block = bytearray(os.urandom(1)) * (64 * 2**20)
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        sys.stdin.read()
        os._exit(0)
    pids.append(pid)
print("ready", flush=True)
sys.stdin.read()
for pid in pids:
    os.waitpid(pid, 0)
"""


@pytest.fixture
def tree():
    """A parent with 64 MiB and three children that share all of it."""
    with subprocess.Popen((sys.executable, "-c", TREE), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        yield parent
        parent.stdin.close()


def test_pages_shared_by_several_processes_count_once(tree):
    found = process_tree_pss_bytes(tree.pid)
    assert found is not None
    assert 64 * MIB <= found < 128 * MIB


def test_an_ended_process_has_no_memory_to_tell():
    with subprocess.Popen((sys.executable, "-c", "")) as ended:
        ended.wait()
    assert process_tree_pss_bytes(ended.pid) is None


def test_a_zombie_counts_as_nothing():
    with subprocess.Popen((sys.executable, "-c", "")) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert process_tree_pss_bytes(zombie.pid) is None


def test_one_unreadable_process_makes_the_sum_unknown(tree, monkeypatch):
    class Refusing(type(host_memory.Path())):
        def read_text(self, *args, **kwargs):
            raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(host_memory, "Path", Refusing)
    assert process_tree_pss_bytes(tree.pid) is None


# ---------------------------------------------------------------------- over time

GROWING = """
import mmap, sys
block = None
for line in sys.stdin:
    block = None
    if int(line):
        block = mmap.mmap(-1, int(line) * 2**20)
        for at in range(0, len(block), mmap.PAGESIZE):
            block[at] = 1
    print("done", flush=True)
"""


class Watched:
    """A process whose memory a test sets, looked at on a clock of the test's own; counts what is read."""

    def __init__(self, process, monkeypatch):
        self.process, self.now_s, self.readings = process, 100.0, 0
        self.memory = HostMemory(process.pid, clock=lambda: self.now_s)
        read = process_tree_pss_bytes

        def counted(*arguments):
            self.readings += 1
            return read(*arguments)

        monkeypatch.setattr(host_memory, "process_tree_pss_bytes", counted)

    def hold(self, mib):
        self.process.stdin.write(f"{mib}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def look(self, *, after_s=0.25, last=False):
        """The newest sample; ``late`` counts those that came with it."""
        self.now_s += after_s
        samples = self.memory.look(last=last)
        assert [s.at_ns for s in samples] == sorted(s.at_ns for s in samples)
        self.late = len(samples) - 1
        return samples[-1].host_bytes if samples else None


@pytest.fixture
def watched(monkeypatch):
    command = (sys.executable, "-c", GROWING)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Watched(process, monkeypatch)
        process.stdin.close()


def test_what_is_resident_is_told_and_who_ended_has_nothing(watched):
    watched.hold(64)
    assert 64 * MIB < resident_bytes([watched.process.pid]) < 128 * MIB
    with subprocess.Popen((sys.executable, "-c", "")) as ended:
        ended.wait()
    assert resident_bytes([ended.pid]) == 0


def test_steady_memory_is_read_once_and_sampled_every_second(watched):
    watched.hold(64)
    samples = [watched.look() for _ in range(36)]
    assert watched.readings == 1
    assert [i for i, sample in enumerate(samples) if sample is not None] == list(range(0, 36, 4))
    assert len({sample for sample in samples if sample is not None}) == 1


def test_a_peak_that_lasts_for_one_look_is_in_the_samples(watched):
    watched.hold(32)
    samples = [watched.look() for _ in range(3)]
    watched.hold(160)
    samples.append(watched.look())
    watched.hold(32)
    samples += [watched.look() for _ in range(8)]
    assert max(filter(None, samples)) > 160 * MIB
    assert min(filter(None, samples)) < 96 * MIB
    assert watched.memory.unread_bytes == 0


def test_a_rise_that_readings_are_too_dear_for_is_told(watched, monkeypatch):
    """Each reading seems to take seconds: the next is not due before minutes have gone."""
    monkeypatch.setattr(host_memory.time, "thread_time", iter(range(0, 1000, 2)).__next__)
    watched.hold(32)
    assert watched.look() is not None
    watched.hold(48)
    assert watched.look() > 48 * MIB  # the first one was not charged
    watched.hold(160)
    assert watched.look() is None
    assert 100 * MIB < watched.memory.unread_bytes < 128 * MIB
    watched.hold(32)
    assert watched.look(last=True) < 96 * MIB
    assert watched.memory.unread_bytes > 100 * MIB
    watched.hold(164)
    assert [watched.look(after_s=1) for _ in range(29)] == [None] * 29
    assert watched.look(after_s=1) > 160 * MIB  # sparse is better than blind
    assert watched.late == 29, "the same was resident all the while"
    assert watched.memory.unread_bytes == 0


def test_steady_memory_is_read_again_now_and_then(watched):
    """Pages that a fork shares become two without more being resident."""
    watched.hold(32)
    for _ in range(130):
        watched.look()
    assert watched.readings == 2


def test_the_last_look_gives_a_sample(watched):
    watched.hold(32)
    first = watched.look()
    assert watched.look(last=True) == first
    assert watched.readings == 1
    watched.hold(96)
    assert watched.look(last=True) > 96 * MIB
    assert watched.readings == 2


def test_new_processes_are_found_within_seconds(tree):
    seen = HostMemory(tree.pid)
    seen.look()
    assert len(seen.members) == 4
