"""GPU facts: what CUDA_VISIBLE_DEVICES leaves, and that machines without NVML have none."""

import sys
from types import SimpleNamespace

import pytest

from pytest_vllmperf.adapters import gpu
from pytest_vllmperf.domain.environment import Gpu

GPUS = tuple(Gpu(index=i, uuid=f"GPU-{c * 8}-{i}", name="NVIDIA H200", memory_bytes=2**37) for i, c in enumerate("abc"))


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
    assert [g.index for g in gpu.visible(GPUS, setting)] == indices


class NVMLError(Exception):
    pass


def fake_nvml(**overrides):
    """The driver's library as it is on a machine with two GPUs; bytes are what old versions return."""
    memory = {"h0": SimpleNamespace(total=100, used=30), "h1": SimpleNamespace(total=100, used=12)}
    functions = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda i: f"h{i}",
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"h{uuid[-1]}",
        "nvmlDeviceGetUUID": lambda h: f"GPU-{h[-1]}".encode(),
        "nvmlDeviceGetName": lambda _h: b"NVIDIA H200",
        "nvmlDeviceGetMemoryInfo": memory.__getitem__,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
    }
    return SimpleNamespace(**{**functions, **overrides})


@pytest.fixture
def install(monkeypatch):
    """Put a library in the place of pynvml, with nothing remembered of an earlier one."""

    def put(module):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        gpu._nvml.cache_clear()
        gpu._handle.cache_clear()

    yield put
    gpu._nvml.cache_clear()
    gpu._handle.cache_clear()


def test_gpus_are_described(install):
    install(fake_nvml())
    assert gpu.list_gpus() == (
        Gpu(index=0, uuid="GPU-0", name="NVIDIA H200", memory_bytes=100),
        Gpu(index=1, uuid="GPU-1", name="NVIDIA H200", memory_bytes=100),
    )
    assert gpu.driver_version() == "570.1"


def test_memory_in_use_is_summed(install):
    install(fake_nvml())
    assert gpu.device_memory_bytes(["GPU-0", "GPU-1"]) == 42
    assert gpu.device_memory_bytes(["GPU-1"]) == 12


def test_memory_of_no_gpu_is_unknown_not_zero(install):
    install(fake_nvml())
    assert gpu.device_memory_bytes([]) is None


def fail(*_args):
    raise NVMLError("GPU is lost")


def test_a_gpu_that_does_not_tell_makes_the_sum_unknown(install):
    install(fake_nvml(nvmlDeviceGetMemoryInfo=fail))
    assert gpu.device_memory_bytes(["GPU-0"]) is None
    assert [g.memory_bytes for g in gpu.list_gpus()] == [None, None]


@pytest.mark.parametrize("broken", [None, fake_nvml(nvmlInit=fail), fake_nvml(nvmlInit=lambda: 1 / 0)])
def test_without_a_working_driver_there_are_no_gpus(install, broken):
    install(broken)
    assert gpu.list_gpus() == ()
    assert gpu.driver_version() is None
    assert gpu.device_memory_bytes(["GPU-0"]) is None


def test_a_driver_that_fails_later_has_no_gpus_and_no_version(install):
    install(fake_nvml(nvmlDeviceGetCount=fail, nvmlSystemGetDriverVersion=fail))
    assert gpu.list_gpus() == ()
    assert gpu.driver_version() is None
