"""What an engine's flags ask of its host: memory beside that of GPUs, and trust."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pytest_vllmperf.domain.engine import EngineConfig

__all__ = ["host_memory_bytes", "shared_memory_bytes", "unsafe"]

_GIB = 2**30
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCAL = ("/", "./", "../", "~")
_EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 - looked for, to be refused
_PICKLE = "VLLM_ALLOW_INSECURE_SERIALIZATION"


def host_memory_bytes(config: EngineConfig) -> int:
    """Host memory that the flags reserve up front: the KV cache's offloading tier, and weights kept on the host.

    What the processes need themselves is not in it.
    """
    weights = _gib(config.args, "cpu-offload-gb") * config.gpus
    return int((_gib(config.args, "kv-offloading-size") + weights) * _GIB)


def shared_memory_bytes(config: EngineConfig) -> int:
    """How much of /dev/shm the flags may take: newer versions keep the native offloading tier there."""
    if config.args.get("kv-offloading-backend") not in (None, "native"):
        return 0
    return int(_gib(config.args, "kv-offloading-size") * _GIB)


def _gib(args: Mapping[str, object], flag: str) -> float:
    try:
        return max(0.0, float(str(args.get(flag) or 0)))
    except ValueError:
        return 0.0


def unsafe(config: EngineConfig) -> str | None:
    """What in a vLLM engine's configuration opens this machine to others, as a sentence; None when nothing does."""
    if not config.serves_vllm:
        return None
    if any(part.split("=")[0] == "--host" for part in config.command or ()):
        return "'--host' in command=: engines listen on loopback only, and are given that address"
    local = config.model.startswith(_LOCAL)
    if config.args.get("trust-remote-code") and not local:
        revision = str(config.args.get("code-revision") or config.args.get("revision") or "")
        if not _COMMIT.fullmatch(revision):
            return (
                "'trust-remote-code' runs whatever the model's repository holds on the day: read its code, and pin "
                "what you read with 'revision' (and 'code-revision') = the whole 40-digit commit"
            )
    if config.env.get(_PICKLE, "0") not in ("0", ""):
        return f"{_PICKLE} lets whoever reaches the engine run code in it: leave it out"
    if config.env.get("VLLM_HOST_IP", "127.0.0.1") in _EVERYWHERE:
        return "VLLM_HOST_IP opens the engine's inner sockets to the network: leave it out, or write an address"
    return None
