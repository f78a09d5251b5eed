"""Host memory between real processes: four offloading tiers never start together."""

import subprocess
import sys

import pytest

from pytest_vllmperf.adapters import host_budget
from pytest_vllmperf.adapters.host_budget import HostBudget
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.needs import host_memory_bytes, shared_memory_bytes
from pytest_vllmperf.errors import EngineError

GIB = 2**30

HOLDER = """
import sys
from pathlib import Path
from pytest_vllmperf.adapters import host_budget

host_budget.memory_limit_bytes = host_budget.available_memory_bytes = lambda: 100 * 2**30
budget = host_budget.HostBudget(Path(sys.argv[1]), project="/other/project")
budget.reserve("theirs", host=62 * 2**30, shared=0)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(monkeypatch):
    """100 GiB of memory, and as much shared memory as one engine's tier takes."""
    monkeypatch.setattr(host_budget, "memory_limit_bytes", lambda: 100 * GIB)
    monkeypatch.setattr(host_budget, "available_memory_bytes", lambda: 95 * GIB)
    monkeypatch.setattr(host_budget, "_shm_bytes", lambda: 70 * GIB)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        (sys.executable, "-c", HOLDER, str(tmp_path / "locks")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


class Waited(Exception):
    pass


def give_up(line):
    raise Waited(line)


@pytest.mark.usefixtures("machine")
def test_a_second_tier_waits_for_the_first_and_says_for_whom(tmp_path, holder):
    budget = HostBudget(tmp_path / "locks", project="/mine")
    with pytest.raises(Waited, match=r"mine: waiting 1 s for 62 GiB of host memory, reserved by engine 'theirs'"):
        budget.reserve("mine", host=62 * GIB, shared=0, waiting=give_up)
    budget.reserve("small", host=20 * GIB, shared=0)
    holder.kill()
    holder.wait()
    budget.give_back("small")
    budget.reserve("mine", host=62 * GIB, shared=0)
    budget.give_back("mine")
    assert list((tmp_path / "locks").glob("memory-*.json")) == []


@pytest.mark.usefixtures("machine")
def test_a_reservation_outlives_its_process_while_somebody_else_holds_its_file(tmp_path):
    """A guardian that has not ended its engine yet."""
    budget = HostBudget(tmp_path / "locks")
    budget.reserve("one", host=62 * GIB, shared=0)
    (descriptor,) = budget.descriptors("one")
    with subprocess.Popen(("sleep", "60"), pass_fds=(descriptor,)) as guardian:
        budget.give_back("one")
        with pytest.raises(Waited):
            budget.reserve("two", host=62 * GIB, shared=0, waiting=give_up)
        guardian.kill()
    budget.reserve("two", host=62 * GIB, shared=0)
    budget.give_back("two")


@pytest.mark.usefixtures("machine")
def test_engines_of_one_process_share_the_memory_too_and_shared_memory_is_counted(tmp_path):
    for budget in (HostBudget(None), HostBudget(tmp_path / "locks")):
        budget.reserve("one", host=40 * GIB, shared=40 * GIB)
        with pytest.raises(Waited):
            budget.reserve("two", host=40 * GIB, shared=40 * GIB, waiting=give_up)
        budget.give_back("one")
        budget.reserve("two", host=40 * GIB, shared=40 * GIB)
        budget.give_back("two")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("gib", [96, 200])
def test_what_will_never_fit_is_refused_at_once(tmp_path, gib):
    with pytest.raises(EngineError, match=f"engine 'one' reserves {gib} GiB of host memory .*, and 95 of 100 GiB"):
        HostBudget(tmp_path / "locks").reserve("one", host=gib * GIB, shared=0)


def test_this_machine_tells_its_memory():
    assert GIB < host_budget.available_memory_bytes() <= host_budget.memory_limit_bytes()


@pytest.mark.parametrize(
    ("args", "host", "shared"),
    [
        ({"kv-offloading-backend": "native", "kv-offloading-size": 62}, 62, 62),
        ({"kv-offloading-backend": "lmcache", "kv-offloading-size": 8}, 8, 0),
        ({"cpu-offload-gb": 4}, 8, 0),
        ({"max-num-seqs": 8}, 0, 0),
    ],
)
def test_flags_tell_what_is_reserved(args, host, shared):
    config = EngineConfig(name="x", model="m", args=args, gpus=2)
    assert (host_memory_bytes(config), shared_memory_bytes(config)) == (host * GIB, shared * GIB)


def test_nothing_is_asked_where_nothing_is_reserved(tmp_path):
    HostBudget(tmp_path / "locks").reserve("one", host=0, shared=0)
    assert not (tmp_path / "locks").exists()
