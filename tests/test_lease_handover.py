"""A GPU goes from one run to the next only when nothing of the first is left on it (fault plan, V09)."""

import subprocess
import sys
import threading
import time

import pytest
from traces import STUBBORN, no_trace_afterwards, traces_in

from pytest_vllmperf.adapters.leases import HostLeases

OWNER = """
import sys, time
from pathlib import Path
from pytest_vllmperf.adapters.engine_process import EngineProcess
from pytest_vllmperf.adapters.leases import HostLeases

import os
leases = HostLeases(Path(sys.argv[1]) / "locks", project="/first")
leases.take("one", gpus=("GPU-0",), count=1)
process = EngineProcess(sys.argv[2:], env=dict(os.environ), log_path=Path(sys.argv[1]) / "one.log",
                        leases=leases.descriptors("one"))
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "told").mkdir()
    with no_trace_afterwards(tmp_path / "told"):
        yield tmp_path


def test_the_next_run_gets_the_gpu_once_the_last_process_of_a_killed_one_is_dead(folder):
    """V09."""
    command = (sys.executable, "-c", OWNER, str(folder), *STUBBORN, str(folder / "told"))
    with subprocess.Popen(command) as owner:
        (traces,) = traces_in(folder / "told")
        lines, taken = [], []

        def take():
            leases = HostLeases(folder / "locks", project="/second")
            leases.take("two", gpus=("GPU-0",), count=1, waiting=lines.append)
            taken.append((time.monotonic(), traces.alive("leader", "in_group", "escaped")))
            leases.give_back("two")

        thread = threading.Thread(target=take)
        thread.start()
        deadline = time.monotonic() + 20
        while not lines:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "held by engine 'one' of /first" in lines[0]
        assert taken == []
        owner.kill()
        killed_at = time.monotonic()
        thread.join(20)
    ((taken_at, alive),) = taken
    print(f"taken {taken_at - killed_at:.2f} s after the kill")  # -rP shows it
    assert alive == []
    assert taken_at - killed_at < 4.0
