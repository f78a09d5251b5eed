"""What is run for an engine: its command line, its environment, its port."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.engine import Device, EngineConfig, flags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["child_environment", "free_port", "is_port_free", "launch_command", "missing_model"]

_LOOPBACK = "127.0.0.1"
_KEY = "VLLM_API_KEY"
_MODEL_PATH = re.compile(r"(/|\./|\.\./|~)")


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_port_free(port: int) -> bool:
    """Whether ``port`` can be bound right now. vLLM itself would find out only after many seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True


def missing_model(model: str) -> Path | None:
    """The path ``model`` names when it is meant as one and nothing is there; None otherwise."""
    if not _MODEL_PATH.match(model):
        return None
    path = Path(model).expanduser()
    return None if path.exists() else path.absolute()


def launch_command(config: EngineConfig, *, port: int, serve: bool = False) -> tuple[str, ...]:
    """The full command line. It never holds the API key: command lines are visible to everybody.

    A command that ends in ``serve`` is vLLM's own (several API servers need it) and takes the model as an argument.

    Args:
        config: What to launch, as on its device.
        port: Where it is to listen.
        serve: Whether the interpreter's ``vllm serve`` works. Its module is named rather than the script beside the
            interpreter: that one may be another environment's.
    """
    model = str(Path(config.model).expanduser()) if config.model.startswith("~") else config.model
    if config.is_template:
        filled = {"model": model, "model_name": config.model_name, "host": _LOOPBACK, "port": str(port)}
        return (*(_filled(part, filled) for part in config.command or ()), *flags(config.args))
    start = config.command or (
        str(Path(config.python).expanduser()) if config.python else sys.executable,
        *(("-m", "vllm.entrypoints.cli.main", "serve") if serve else ("-m", "vllm.entrypoints.openai.api_server")),
    )
    return (
        *start,
        *((model,) if start[-1] == "serve" else ("--model", model)),
        *("--served-model-name", config.model_name),
        *("--host", _LOOPBACK, "--port", str(port)),
        *flags(config.args),
    )


def _filled(part: str, values: Mapping[str, str]) -> str:
    """``part`` with its places filled in; braces that name no place stay (JSON has them too)."""
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), part)


def child_environment(
    config: EngineConfig, *, device: Device, api_key: str, gpu_uuids: Sequence[str], base: Mapping[str, str]
) -> dict[str, str]:
    """The engine's environment: the caller's, our defaults where it is silent, then the configuration's own.

    ``PYTHONDONTWRITEBYTECODE`` is not handed on: without compiled files a start takes more than twice as long.
    """
    env = dict(base)
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    if config.python:
        _enter(Path(config.python).expanduser().parent, env)
    defaults = {"VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    if Path(config.model).expanduser().is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"
    for name, value in defaults.items():
        env.setdefault(name, value)
    if config.args.get("enable-sleep-mode"):  # its routes are part of the development mode; we listen on loopback only
        env.setdefault("VLLM_SERVER_DEV_MODE", "1")
    if gpu_uuids:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_uuids)
    return {**env, **config.env, config.api_key_env or _KEY: api_key}


def _enter(programs: Path, env: dict[str, str]) -> None:
    """Another interpreter: its own programs (ninja, nvcc) come first, and this one's packages stay out."""
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        env.pop(name, None)
    env["PATH"] = os.pathsep.join(part for part in (str(programs), env.get("PATH", "")) if part)
