"""Host memory of real process trees."""

import os
import subprocess
import sys

import pytest

from pytest_vllmperf.adapters import host_memory
from pytest_vllmperf.adapters.host_memory import process_tree_pss_bytes

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
