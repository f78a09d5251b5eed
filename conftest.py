"""The matrix `pytest suites/` measures: edit it to name your engines. MODEL=… serves another model."""

import os
from dataclasses import replace
from pathlib import Path

from pytest_vllmperf import BUILT_IN_TASKS, EngineConfig, ServiceLevel, Workload
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


QUANTIZED = Path(__file__).parent / "suites" / "models" / ".quantized"


def pytest_vllmperf_engines(config):
    if asks_for_quantization(config):
        return quantization_engines()
    return [
        EngineConfig(name="baseline", model=MODEL, cpu_args={**CPU, **PLAIN}, gpu_args={"max-model-len": CONTEXT}),
        EngineConfig(name="max-perf", model=MODEL, args=FAST, cpu_args=CPU, gpu_args=ASYNC_OFFLOAD),
    ]


def pytest_vllmperf_workloads(config):
    """Beside the built-in ones: what `pytest suites/ -m capacity` sends, and what its users put up with."""
    level = ServiceLevel(ttft_s=1.0, tpot_s=0.05)
    return [
        Workload(
            name="chat",
            input_tokens=256,
            output_tokens=64,
            requests=1000,
            requests_on_cpu=120,
            max_concurrency=64,
            service_level=level,
        )
    ]


def pytest_vllmperf_quality_tasks(config):
    if asks_for_quantization(config):
        task = BUILT_IN_TASKS["gsm8k" if os.environ.get("MODEL") else "tinymath"]
        return [replace(task, reference="unquantized")]
    return [BUILT_IN_TASKS["gsm8k" if os.environ.get("MODEL") else "tinymath"]]


# --- `pytest suites/ -m quantization`: engines that differ in weights only, the unquantized one first -----------------


def asks_for_quantization(config):
    return "quantization" in config.option.markexpr and "not quantization" not in config.option.markexpr


def pytest_configure(config):
    if asks_for_quantization(config) and config.option.vllmperf_thresholds is None:
        config.option.vllmperf_thresholds = str(Path(__file__).parent / "suites" / "quantization.toml")


def pytest_ignore_collect(collection_path, config):
    """Opt-in: five engines more, or a dozen loads of each, would make a run of all suites too long."""
    if collection_path.name == "test_capacity.py":
        return "capacity" not in config.option.markexpr or None
    return (collection_path.name == "test_quantization.py" and not asks_for_quantization(config)) or None


def quantization_engines():
    """Of MODEL: as it is, and in FP8. Name your own AWQ, GPTQ, GGUF … checkpoints here, by hub id or path.

    Of the bundled model: in 4 and 8 bits, by the formats and kernels real checkpoints use.
    """
    if os.environ.get("MODEL"):
        whole = {"max-model-len": CONTEXT}
        return [
            EngineConfig(name="unquantized", model=MODEL, gpu_args=whole),
            EngineConfig(name="fp8", model=MODEL, args={"quantization": "fp8"}, gpu_args=whole, requires=("gpu",)),
        ]
    from suites.models.quantize import FORMATS, variant

    common = {"served_model_name": "tinymath", "cpu_args": {**CPU, **PLAIN}, "gpu_args": {"max-model-len": 2048}}
    return [
        EngineConfig(name="unquantized", model=str(BUNDLED), **common),
        *(EngineConfig(name=kind, model=str(variant(kind, QUANTIZED / kind)), **common) for kind in FORMATS),
    ]
