"""The matrix `pytest suites/` measures: edit it to name your engines. MODEL=… serves another model."""

import os
from pathlib import Path

from pytest_vllmperf import BUILT_IN_TASKS, EngineConfig
from pytest_vllmperf.adapters.history import pytest_benchmark_scale_unit  # noqa: F401 - units in `pytest-benchmark compare`

BUNDLED = Path(__file__).parent / "suites" / "models" / "tinymath"
MODEL = os.environ.get("MODEL") or str(BUNDLED)
CONTEXT = 16384 if os.environ.get("MODEL") else 2048

# On a CPU "GPU memory" means host memory, of which the engine must not take all.
CPU = {"enforce-eager": True, "gpu-memory-utilization": 0.3, "max-model-len": 2048}
PLAIN = {"async-scheduling": False, "enable-prefix-caching": False, "enable-chunked-prefill": False}
FAST = {"enable-prefix-caching": True, "enable-chunked-prefill": True, "max-num-seqs": 64}
ASYNC_OFFLOAD = {  # on a CPU vLLM schedules synchronously whatever it is asked
    "async-scheduling": True,
    "kv-offloading-backend": "native",
    "kv-offloading-size": 62,
    "disable-hybrid-kv-cache-manager": True,
    "kv-cache-dtype": "fp8",
    "gpu-memory-utilization": 0.85,
    "max-model-len": CONTEXT,
}


def pytest_vllmperf_engines(config):
    return [
        EngineConfig(name="baseline", model=MODEL, cpu_args={**CPU, **PLAIN}, gpu_args={"max-model-len": CONTEXT}),
        EngineConfig(name="max-perf", model=MODEL, args=FAST, cpu_args=CPU, gpu_args=ASYNC_OFFLOAD),
    ]


def pytest_vllmperf_quality_tasks(config):
    return [BUILT_IN_TASKS["gsm8k" if os.environ.get("MODEL") else "tinymath"]]
