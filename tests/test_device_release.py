"""Device memory between engines."""

import time

import pytest
from fake_nvml import GIB

from pytest_vllmperf import device_release
from pytest_vllmperf.device_release import DeviceRelease
from pytest_vllmperf.errors import EngineError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(device_release, "_POLL_S", 0.01)


def returning(nvml, after_s, *, held=30 * GIB, rest=GIB):
    """The driver holds memory of a dead process for a while."""
    until = time.monotonic() + after_s
    original = nvml.functions["DeviceGetMemoryInfo"]

    def info(handle):
        nvml.memory["GPU-0"] = held if time.monotonic() < until else rest
        return original(handle)

    nvml.functions["DeviceGetMemoryInfo"] = info


def test_the_next_engine_waits_until_the_driver_has_taken_its_memory_back(nvml):
    """V04."""
    release = DeviceRelease(lambda _line: None)
    before = release.before(["GPU-0"])
    returning(nvml, 0.7)
    assert 0.5 < release.wait("one", before) < 2.0
    assert release.tainted(["GPU-0"]) == {}


def test_memory_that_never_comes_back_taints_the_gpu(nvml, monkeypatch):
    """V05."""
    monkeypatch.setattr(device_release, "_GIVE_UP_S", 0.2)
    monkeypatch.setattr(device_release, "_TELL_S", 0.05)
    lines = []
    release = DeviceRelease(lines.append)
    before = release.before(["GPU-0", "GPU-1"])
    returning(nvml, 3600)
    with pytest.raises(EngineError, match=r"29 GiB of device memory on GPU-0 did not come back within 0\.2 s after"):
        release.wait("one", before)
    assert list(release.tainted(["GPU-0", "GPU-1"])) == ["GPU-0"]
    assert lines == ["one: waiting for the driver to take back 29 GiB of device memory on GPU-0"]


def test_a_little_more_than_before_is_nothing_to_wait_for(nvml):
    release = DeviceRelease(lambda _line: None)
    before = release.before(["GPU-0"])
    nvml.memory["GPU-0"] += 700 * 2**20  # less than 1 % of 80 GiB
    assert release.wait("one", before) < 0.1


def test_a_driver_that_does_not_tell_is_not_waited_for(nvml):
    nvml.broken = {"DeviceGetMemoryInfo"}
    release = DeviceRelease(lambda _line: None)
    assert release.before(["GPU-0"]) == {}
    assert release.wait("one", {"GPU-0": GIB}) < 0.1
