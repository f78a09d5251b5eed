"""GPU facts and samples, with a driver of our own making: whole, split, silent, broken, gone."""

import sys
import threading
import time
from types import SimpleNamespace

import pytest
from fake_nvml import GIB, NVMLError

from pytest_vllmperf.adapters import gpu
from pytest_vllmperf.adapters.gpu import inventory
from pytest_vllmperf.domain.environment import Gpu

GPUS = tuple(Gpu(index=i, uuid=f"GPU-{c * 8}-{i}", name="NVIDIA H200", memory_bytes=2**37) for i, c in enumerate("abc"))
SPLIT = tuple(Gpu(index=0, uuid=f"MIG-{c * 8}", name="NVIDIA H200 MIG 1g.18gb", memory_bytes=1) for c in "ab")


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        ("GPU-bbbb", [1]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,7,1", [0]),
        ("1, 2", [1, 2]),
        ("1,1", [1]),
    ],
)
def test_only_visible_gpus_are_listed_in_the_order_asked(setting, indices):
    """V08."""
    assert [g.index for g in gpu.visible(GPUS, setting)] == indices


def test_a_part_of_a_split_gpu_is_chosen_by_its_uuid():
    """V08."""
    assert [g.uuid for g in gpu.visible(SPLIT, "MIG-bbbbbbbb")] == ["MIG-bbbbbbbb"]
    assert gpu.visible(SPLIT, "MIG-") == ()


@pytest.fixture
def without_visible_devices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("without_visible_devices")
def test_gpus_are_described(nvml):
    assert gpu.list_gpus() == (
        Gpu(index=0, uuid="GPU-0", name="NVIDIA H200", memory_bytes=80 * GIB),
        Gpu(index=1, uuid="GPU-1", name="NVIDIA H200", memory_bytes=80 * GIB),
    )
    assert gpu.driver_version() == "570.1"
    assert gpu.problem() is None
    assert gpu.total_memory_bytes(["GPU-0", "GPU-1"]) == 160 * GIB


@pytest.mark.usefixtures("without_visible_devices")
def test_of_a_split_gpu_the_parts_are_listed_and_told_apart(nvml):
    """V08: memory is the part's own; power and clocks it does not tell."""
    nvml.memory |= {"MIG-a": 3 * GIB, "MIG-b": 5 * GIB}
    nvml.functions |= {
        "DeviceGetMigMode": lambda handle: (1, 1) if handle == "GPU-0" else (0, 0),
        "DeviceGetMaxMigDeviceCount": lambda _handle: 3,
        "DeviceGetMigDeviceHandleByIndex": lambda _handle, place: _part(place),
    }
    assert [g.uuid for g in gpu.list_gpus()] == ["MIG-a", "MIG-b", "GPU-1"]
    nvml.broken = {"DeviceGetPowerUsage", "DeviceGetTotalEnergyConsumption", "DeviceGetClockInfo"}
    sample = gpu.device_sample(["MIG-b"], ())
    assert (sample.used_bytes, sample.power_w, sample.energy_j, sample.sm_clock_ratio) == (5 * GIB, None, None, None)


def _part(index):
    if index > 1:
        raise NVMLError("Not Found")
    return ["MIG-a", "MIG-b"][index]


def test_memory_in_use_is_summed(nvml):
    nvml.memory = {"GPU-0": 30, "GPU-1": 12}
    assert gpu.device_memory_bytes(["GPU-0", "GPU-1"]) == 42
    assert gpu.device_memory_bytes(["GPU-1"]) == 12


def test_memory_of_no_gpu_is_unknown_not_zero(nvml):
    assert gpu.device_memory_bytes([]) is None


@pytest.mark.usefixtures("without_visible_devices")
def test_a_gpu_that_does_not_tell_makes_the_sum_unknown(nvml):
    nvml.broken = {"DeviceGetMemoryInfo"}
    assert gpu.device_memory_bytes(["GPU-0"]) is None
    assert [g.memory_bytes for g in gpu.list_gpus()] == [None, None]
    assert gpu.total_memory_bytes(["GPU-0"]) is None


def fail(*_args):
    raise NVMLError("Driver/library version mismatch")


BROKEN = [
    None,
    SimpleNamespace(nvmlInit=fail, NVMLError=NVMLError),
    SimpleNamespace(nvmlInit=lambda: 1 / 0, NVMLError=NVMLError),
]


@pytest.mark.usefixtures("without_visible_devices")
@pytest.mark.parametrize("broken", BROKEN)
def test_without_a_working_driver_there_are_no_gpus(nvml, monkeypatch, tmp_path, broken):
    """V01."""
    monkeypatch.setattr(inventory, "_DRIVER", tmp_path)
    monkeypatch.setattr(inventory, "_NODES", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert gpu.list_gpus() == ()
    assert gpu.driver_version() is None
    assert gpu.device_memory_bytes(["GPU-0"]) is None
    assert gpu.problem() is None  # there is no GPU to know nothing of
    assert gpu.why_not()


@pytest.mark.usefixtures("without_visible_devices")
def test_a_driver_newer_than_its_library_still_has_its_gpus_and_says_what_is_wrong(nvml, monkeypatch, tmp_path):
    """V01: an update of the driver without a restart."""
    (tmp_path / "0000:01:00.0").mkdir()
    told = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 42\nGPU UUID: \t GPU-aaaa\n"
    (tmp_path / "0000:01:00.0" / "information").write_text(told)
    monkeypatch.setattr(inventory, "_DRIVER", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", BROKEN[1])
    assert gpu.list_gpus() == (Gpu(index=0, uuid="GPU-aaaa", name="NVIDIA H200", memory_bytes=None),)
    assert gpu.problem().startswith("NVML does not work (Driver/library version mismatch): memory, power and clocks")


@pytest.mark.usefixtures("without_visible_devices")
def test_gpus_that_nothing_describes_are_told_of(nvml, monkeypatch, tmp_path):
    """V01: a container with the devices and without the driver's library."""
    monkeypatch.setattr(inventory, "_DRIVER", tmp_path / "none")
    monkeypatch.setattr(inventory, "_NODES", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", BROKEN[1])
    assert gpu.problem() is None
    for name in ("nvidia0", "nvidiactl"):
        (tmp_path / name).touch()
    assert "there are GPUs (nvidia0) and nothing tells which, so engines run on the CPU" in gpu.problem()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.problem() is None  # hidden on purpose


@pytest.mark.usefixtures("without_visible_devices")
def test_a_driver_that_fails_later_has_no_gpus_and_no_version(nvml):
    nvml.broken = {"DeviceGetCount", "SystemGetDriverVersion"}
    assert gpu.list_gpus() == ()
    assert gpu.driver_version() is None


# ---------------------------------------------------------------------- samples


def test_a_full_sample_tells_all_and_a_short_one_costs_one_call_for_each_gpu(nvml):
    nvml.memory = {"GPU-0": 30 * GIB, "GPU-1": 20 * GIB}
    nvml.processes = {"GPU-0": {10: 25 * GIB, 99: 4 * GIB}, "GPU-1": {11: 19 * GIB}}
    nvml.energy_j, nvml.reasons = 5000.0, 0x4
    full = gpu.device_sample(["GPU-0", "GPU-1"], (10, 11))
    assert (full.used_bytes, full.own_bytes) == (50 * GIB, 44 * GIB)
    assert (full.power_w, full.energy_j, full.sm_clock_ratio, full.temperature_c) == (800.0, 10_000.0, 0.75, 61.0)
    assert full.throttled == ("SW power cap",)
    nvml.asked.clear()
    short = gpu.device_sample(["GPU-0", "GPU-1"], None)
    assert (short.used_bytes, short.own_bytes, short.throttled) == (50 * GIB, None, None)
    assert nvml.asked == {"DeviceGetMemoryInfo": 2}


@pytest.mark.parametrize("processes", [{10: None}, {4242: GIB}, {}])
def test_a_driver_that_hides_processes_tells_no_share(nvml, processes):
    """V02: no figure (WSL), numbers of another namespace (a container), or no processes at all."""
    nvml.processes["GPU-0"] = processes
    assert gpu.device_sample(["GPU-0"], (10,)).own_bytes is None


def test_the_name_old_drivers_have_for_throttling_serves_as_well(nvml):
    nvml.broken = {"DeviceGetCurrentClocksEventReasons"}
    nvml.functions["DeviceGetCurrentClocksThrottleReasons"] = lambda _handle: 0x40
    assert gpu.device_sample(["GPU-0"], ()).throttled == ("HW thermal slowdown",)


def test_sampling_has_a_full_sample_at_both_ends(nvml):
    nvml.energy_j = 100.0
    with gpu.DeviceSampler(["GPU-0"], lambda: (1,)) as sampler:
        deadline = time.monotonic() + 20
        while len(sampler.samples) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        nvml.energy_j = 175.0
    assert (sampler.samples[0].energy_j, sampler.samples[-1].energy_j) == (100.0, 175.0)
    assert sampler.samples[1].energy_j is None
    assert sampler.failures == []


def test_a_driver_that_does_not_answer_delays_nothing_and_is_told(nvml):
    """V07."""
    answer = threading.Event()
    asked = threading.Event()

    def hang(_handle):
        asked.set()
        answer.wait(20)
        raise NVMLError("Timeout")

    with gpu.DeviceSampler(["GPU-0"], lambda: (1,)) as sampler:
        nvml.functions["DeviceGetMemoryInfo"] = hang
        assert asked.wait(20)
        since = time.monotonic()
    assert time.monotonic() - since < 1.0
    assert sampler.failures[0].startswith("the GPU driver did not answer")
    answer.set()


def test_no_gpu_no_thread():
    before = threading.active_count()
    with gpu.DeviceSampler([], lambda: ()) as sampler:
        assert threading.active_count() == before
    assert sampler.samples == []
