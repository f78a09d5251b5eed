"""What can be known to be wrong with an engine before anything is launched or leased, in well under a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.engine_process import missing_model
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

__all__ = ["check_engine"]


def check_engine(config: EngineConfig, environment: Environment, *, tell: Callable[[str], None]) -> bool:
    """Refuse what cannot work here; whether the engine's interpreter has a ``vllm serve`` that works.

    Asking a vLLM which flags it knows takes its import's time (ten seconds and more), once for each version, and
    only where some flag is not among those that every version has.

    Raises:
        EngineUnavailable: This machine lacks what the engine requires.
        EngineError: Interpreter, executable or model is missing, vLLM does not know a flag, or the flags open the
            machine to others.
    """
    _check_gpus(config, environment)
    if config.url:
        return False
    if problem := unsafe(config):
        raise EngineError(f"engine {config.name!r}: {problem}")
    serve = False
    if config.command is not None:
        _check_executable(config)
    else:
        try:
            installed = inspect_interpreter(config.python)
        except EngineError as error:
            raise EngineError(f"engine {config.name!r}: {error}") from error
        _check_flags(config, installed, tell)
        serve = installed.has_serve
    if path := missing_model(config.model):
        raise EngineError(f"engine {config.name!r}: model={config.model!r}: there is nothing at {path}")
    return serve


def _check_gpus(config: EngineConfig, environment: Environment) -> None:
    have = len(environment.gpus)
    if environment.device == "cpu" and "gpu" in config.requires:
        raise EngineUnavailable(f"engine {config.name!r} requires a GPU, and none is visible here")
    if environment.device == "gpu" and not config.url and config.gpus > have:
        raise EngineUnavailable(f"engine {config.name!r} needs {config.gpus} GPUs, and {have} are visible here")


def _check_executable(config: EngineConfig) -> None:
    assert config.command is not None
    program = config.command[0]
    if shutil.which(program) is None and shutil.which(program, path=config.env.get("PATH")) is None:
        raise EngineError(
            f"engine {config.name!r}: cannot run {program!r}: it is not there, or not executable. Give "
            "EngineConfig(command=…) an executable that exists on this machine, by path or on PATH"
        )


def _check_flags(config: EngineConfig, installed: Interpreter, tell: Callable[[str], None]) -> None:
    if installed.version is None:
        return  # a checkout nobody installed: its own parser will tell
    if "api-server-count" in config.args and not installed.has_serve:
        raise EngineError(
            f"engine {config.name!r}: 'api-server-count' works with `vllm serve` only, and the command of package "
            f"{installed.distribution} does not run: leave it out here (gpu_args= gives flags to GPUs alone)"
        )
    if not unfamiliar(config.args):
        return
    known = known_flags(installed.path, version=installed.version, stamp=installed.stamp, telling=tell)
    problems = flag_problems(config.args, known or ()) if known else ()
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        hint = next((found for problem in problems if (found := find_hint(problem))), None)
        advice = f"\n  hint:  {hint}" if hint else ""
        raise EngineError(
            f"engine {config.name!r}: vLLM {installed.version} does not take these flags, so it was not launched:"
            f"{listed}{advice}"
        )
