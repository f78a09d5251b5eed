"""What can be known to be wrong with an engine before anything is launched or leased, in well under a second."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.engine_command import child_environment, missing_model
from pytest_vllmperf.adapters.interpreter import inspect_interpreter
from pytest_vllmperf.adapters.vllm_flags import known_flags
from pytest_vllmperf.domain.flag_check import flag_problems
from pytest_vllmperf.domain.flag_traps import unfamiliar
from pytest_vllmperf.domain.hints import find_hint
from pytest_vllmperf.domain.needs import unsafe
from pytest_vllmperf.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.interpreter import Interpreter
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.domain.environment import Environment

__all__ = ["Checked", "check_engine", "lacking"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An engine that may be launched.

    ``serve`` tells whether its interpreter has a ``vllm serve`` that works, ``warnings`` what could not be checked.
    """

    serve: bool = False
    warnings: tuple[str, ...] = ()


def check_engine(config: EngineConfig, environment: Environment, *, tell: Callable[[str], None]) -> Checked:
    """Refuse what cannot work here.

    Asking a vLLM which flags it knows takes its import's time (ten seconds and more), once for each version, and
    only where some flag is not among those that every version has.

    Raises:
        EngineUnavailable: This machine lacks what the engine requires.
        EngineError: Interpreter, executable or model is missing, vLLM does not know a flag, or the flags open the
            machine to others.
    """
    if (what := lacking(config, environment)) is not None:
        raise EngineUnavailable(what)
    if config.url:
        return Checked()
    if problem := unsafe(config):
        raise EngineError(f"engine {config.name!r}: {problem}")
    checked = Checked()
    if config.command is not None:
        _check_executable(config)
    else:
        try:
            installed = inspect_interpreter(config.python)
        except EngineError as error:
            raise EngineError(f"engine {config.name!r}: {error}") from error
        unchecked = _check_flags(config, installed, environment, tell)
        checked = Checked(serve=installed.has_serve, warnings=(unchecked,) if unchecked else ())
    if path := missing_model(config.model):
        raise EngineError(f"engine {config.name!r}: model={config.model!r}: there is nothing at {path}")
    return checked


def lacking(config: EngineConfig, environment: Environment) -> str | None:
    """What this machine lacks that the engine requires, as a sentence; None where it has all."""
    have = len(environment.gpus)
    if environment.device == "cpu" and "gpu" in config.requires:
        return f"engine {config.name!r} requires a GPU, and none is visible here"
    if environment.device == "gpu" and not config.url and config.gpus > have:
        return f"engine {config.name!r} needs {config.gpus} GPUs, and {have} are visible here"
    return None


def _check_executable(config: EngineConfig) -> None:
    assert config.command is not None
    program = config.command[0]
    if shutil.which(program) is None and shutil.which(program, path=config.env.get("PATH")) is None:
        raise EngineError(
            f"engine {config.name!r}: cannot run {program!r}: it is not there, or not executable. Give "
            "EngineConfig(command=…) an executable that exists on this machine, by path or on PATH"
        )


def _check_flags(
    config: EngineConfig, installed: Interpreter, environment: Environment, tell: Callable[[str], None]
) -> str | None:
    """Refuse flags that the installed vLLM does not know; why they were not looked at, where they were not."""
    if installed.version and "api-server-count" in config.args and not installed.has_serve:
        raise EngineError(
            f"engine {config.name!r}: 'api-server-count' works with `vllm serve` only, and the command of package "
            f"{installed.distribution} does not run: leave it out here (gpu_args= gives flags to GPUs alone)"
        )
    if not unfamiliar(config.args):
        return None
    if installed.version is None and not installed.stamp:
        return f"its flags were not checked before the launch: {installed.path} finds no vLLM"
    version = installed.version or "from a checkout"
    env = child_environment(config, device=environment.device, api_key="", gpu_uuids=(), base=os.environ)
    try:
        known = known_flags(installed.path, version=version, stamp=installed.stamp, env=env, telling=tell)
    except EngineError as error:
        return f"its flags were not checked before the launch: the parser of vLLM {version} cannot be asked: {error}"
    if problems := flag_problems(config.args, known):
        listed = "".join(f"\n  - {problem}" for problem in problems)
        hint = next((found for problem in problems if (found := find_hint(problem))), None)
        advice = f"\n  hint:  {hint}" if hint else ""
        raise EngineError(
            f"engine {config.name!r}: vLLM {version} does not take these flags, so it was not launched:{listed}{advice}"
        )
    return None
