"""GPUs as NVML shows them. Without NVML, a driver or a GPU there are simply none; nothing here raises."""

from pytest_vllmperf.adapters.gpu.inventory import driver_version, list_gpus, problem, total_memory_bytes, visible
from pytest_vllmperf.adapters.gpu.nvml import why_not
from pytest_vllmperf.adapters.gpu.sampling import DeviceSampler, device_memory_bytes, device_sample

__all__ = [
    "DeviceSampler",
    "device_memory_bytes",
    "device_sample",
    "driver_version",
    "list_gpus",
    "problem",
    "total_memory_bytes",
    "visible",
    "why_not",
]
