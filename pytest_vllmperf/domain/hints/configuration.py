"""Failures of flags and of what they ask for."""

from __future__ import annotations

from pytest_vllmperf.domain.hints.hint import Hint

__all__ = ["CONFIGURATION", "FLAGS"]

FLAGS = (
    Hint(
        row="E01",
        id="offloading-flag",
        pattern=r"unrecognized arguments:.*--kv[-_]offloading[-_]backend",
        advice="this vLLM does not know the flag; where it exists it is written with dashes, and only the size turns "
        'it on: args={{"kv-offloading-backend": "native", "kv-offloading-size": …}}',
    ),
    Hint(
        row="E05",
        id="multi-step-scheduling",
        pattern=r"unrecognized arguments:.*--num[-_]scheduler[-_]steps",
        advice='multi-step scheduling (--num-scheduler-steps) went with the V0 engine: remove "num-scheduler-steps" '
        'from args; "async-scheduling": True is what came after it',
    ),
    Hint(
        row="E51",
        id="underscored-flag",
        pattern=r"unrecognized arguments:.*--\w+_\w",
        advice="write flags with dashes, not underscores",
    ),
    Hint(
        row="E06",
        id="unknown-flag",
        pattern=r"unrecognized arguments: (?P<flag>.+)",
        advice="the installed vLLM has no {flag}: it was renamed, removed or belongs to another version; "
        "`python -m vllm.entrypoints.openai.api_server --help=all` lists what there is",
    ),
    Hint(
        row="E50",
        id="flag-value",
        pattern=r"invalid choice: (?P<value>\S+) \(choose from",
        advice="the installed vLLM does not accept {value}; the message lists the values it does accept",
    ),
    Hint(
        row="E07",
        id="unknown-variable",
        pattern=r"Unknown vLLM environment variable detected: (?P<name>\S+)",
        advice="vLLM ignores {name}: remove it from env (the attention backend is chosen by "
        'args={{"attention-backend": …}}, and V1 is the only engine); "fail-on-environ-validation": True makes this '
        "an error",
        warns=True,
    ),
    Hint(
        row="E08",
        id="attention-variable",
        pattern=r"Using VLLM_ATTENTION_BACKEND environment variable is deprecated",
        advice='choose the attention backend by args={{"attention-backend": …}}; later versions ignore the variable',
        warns=True,
    ),
)

CONFIGURATION = (
    Hint(
        row="E02",
        id="hma-connector",
        pattern=r"Connector (?P<connector>\w+) does not support HMA",
        advice='{connector} needs the hybrid KV cache manager off: args={{"disable-hybrid-kv-cache-manager": True}}',
    ),
    Hint(
        row="E14",
        id="quantization-needs-newer-gpu",
        pattern=r"quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum\s+capability: "
        r"(?P<least>\d+)\. Current capability: (?P<have>\d+)",
        advice="{method} needs a GPU of compute capability {least}, this one has {have}: use another quantization "
        "or another GPU",
    ),
    Hint(
        row="E14",
        id="fp8-on-cpu",
        pattern=r"static_scaled_fp8_quant\(\) expected at most 0 argument",
        advice='a CPU has FP8 kernels for one scale for each output channel only: args={{"quantization": '
        '"fp8_per_channel"}}, or a checkpoint of that kind (compressed-tensors, activations quantized by token)',
    ),
    Hint(
        row="E14",
        id="no-kernel-for-quantization",
        pattern=r"Failed to find a kernel that can implement the (?P<kind>\w+) linear layer",
        advice="no {kind} kernel of this machine reads weights quantized that way: use another quantization or device",
    ),
    Hint(
        row="E14",
        id="gguf",
        pattern=r"config file at '(?P<file>[^']+\.gguf)' is not a valid JSON file",
        advice="this vLLM does not read GGUF: serve {file} with llama.cpp (EngineConfig(command=…)), or give vLLM "
        "another format",
    ),
    Hint(
        row="E15",
        id="max-model-len",
        pattern=r"User-specified max_model_len \((?P<given>\d+)\) is greater than the derived max_model_len "
        r"\(\D*(?P<derived>\d+)",
        advice='lower args["max-model-len"] from {given} to {derived}, what the model supports',
    ),
    Hint(
        row="E16",
        id="batched-tokens",
        pattern=r"max_num_batched_tokens \((?P<tokens>\d+)\) must\s+be greater than or equal to max_num_seqs"
        r"\s+\((?P<sequences>\d+)\)",
        advice='raise args["max-num-batched-tokens"] from {tokens} to {sequences} or more, or lower "max-num-seqs"',
    ),
    Hint(
        row="E17",
        id="too-few-gpus",
        pattern=r"World size \((?P<size>\d+)\) is larger than the number of\s+available GPUs \((?P<have>\d+)\)",
        advice="tensor-parallel-size × pipeline-parallel-size is {size} and the engine sees {have} GPUs: set "
        'EngineConfig(gpus={size}), or lower args["tensor-parallel-size"]',
    ),
    Hint(
        row="E18",
        id="attention-heads",
        pattern=r"Total number of attention heads \((?P<heads>\d+)\)\s+must be divisible by tensor parallel size",
        advice='args["tensor-parallel-size"] must divide the {heads} attention heads of the model',
    ),
    Hint(
        row="E21",
        id="attention-backend-invalid",
        pattern=r"Selected backend (?P<backend>\S+) is not valid for\s+this configuration\. Reason: (?P<reason>.+)",
        advice='{backend} cannot serve this model here ({reason}): choose another args["attention-backend"], or '
        "leave it out",
    ),
    Hint(
        row="E22",
        id="no-attention-backend",
        pattern=r"No valid attention backend found",
        advice='no attention backend fits model, GPU and flags: leave out "block-size" or "kv-cache-dtype"; the '
        "message lists each backend's reason",
    ),
    Hint(
        row="E44",
        id="hybrid-cache-off",
        pattern=r"Turning off hybrid kv cache manager because (?P<reason>.+)",
        advice="the hybrid KV cache manager is off ({reason}): models with several kinds of layers then get less "
        "KV cache",
        warns=True,
    ),
    Hint(
        row="E45",
        id="async-scheduling-off",
        pattern=r"Async scheduling (?P<what>(?:is )?not (?:supported|compatible)[^.]*|will be disabled[^.]*"
        r"|is disabled[^.]*)",
        advice='async scheduling {what}: change that, or leave "async-scheduling" out of args',
        warns=True,
    ),
)
