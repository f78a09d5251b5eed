"""The flags the installed vLLM knows, asked of its own parser and kept: importing vLLM takes many seconds."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from pytest_vllmperf.domain.flag_check import KnownFlag
from pytest_vllmperf.errors import EngineError

__all__ = ["known_flags"]

_TIMEOUT_S = 180.0
_MARK = "vllm-flags:"
_QUESTION = f"""
import json, sys
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ModuleNotFoundError:
    from vllm.utils import FlexibleArgumentParser
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ModuleNotFoundError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
flags = [
    {{
        "names": action.option_strings,
        "takes_value": action.nargs != 0,
        "needs_value": action.nargs not in (0, "?", "*"),
        "choices": [str(c) for c in action.choices] if action.choices else None,
    }}
    for action in make_arg_parser(FlexibleArgumentParser())._actions
    if action.option_strings
]
print({_MARK!r} + json.dumps(flags))
"""


_SEARCHED = ("PYTHONPATH", "PYTHONHOME")
_Search = tuple[tuple[str, str | None], ...]


def known_flags(
    python: str,
    *,
    version: str,
    stamp: str,
    env: Mapping[str, str],
    telling: Callable[[str], None] = lambda _line: None,
) -> tuple[KnownFlag, ...]:
    """Every flag of the vLLM that ``python`` has.

    Args:
        python: The interpreter.
        version: Of its vLLM.
        stamp: Changes whenever that vLLM's files do (a checkout changes without its version).
        env: The engine's environment, of which ``PYTHONPATH`` and ``PYTHONHOME`` say where vLLM is found.
        telling: Called with a line when it takes long, which it does once for each version.

    Raises:
        EngineError: Its parser cannot be asked; the message is the reason alone.
    """
    found = _known_flags(python, version, stamp, tuple((name, env.get(name)) for name in _SEARCHED), telling)
    if isinstance(found, str):
        raise EngineError(found)
    return found


@functools.cache
def _known_flags(
    python: str, version: str, stamp: str, search: _Search, telling: Callable[[str], None]
) -> tuple[KnownFlag, ...] | str:
    """The flags, or why there are none: a parser that fails is not asked once more for each engine."""
    path = _cache_path(python, version, stamp, search)
    if (kept := _read(path)) is not None:
        return kept
    telling(f"asking vLLM {version} which flags it knows (once for each version)")
    try:
        told = _ask(python, search)
    except subprocess.CalledProcessError as error:
        lines: list[str] = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with exit code {error.returncode}"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)[:300]
    flags = _parsed(told)
    if not flags:
        return "what it said is no list of flags"
    _write(path, told)
    return flags


def _cache_path(python: str, version: str, stamp: str, search: _Search) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(repr((python, version, stamp, search, _QUESTION)).encode()).hexdigest()[:24]
    return home / "pytest-vllmperf" / "flags" / f"{name}.json"


def _ask(python: str, search: _Search) -> str:
    env = {name: value for name, value in os.environ.items() if name not in _SEARCHED}
    env |= {name: value for name, value in search if value is not None}
    env |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        (python, "-c", _QUESTION),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=True,
        env=env,
    )
    lines = (line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(_MARK))
    return next(lines, "").removeprefix(_MARK)


def _parsed(text: str) -> tuple[KnownFlag, ...] | None:
    try:
        return tuple(
            KnownFlag(
                names=tuple(flag["names"]),
                takes_value=bool(flag["takes_value"]),
                needs_value=bool(flag["needs_value"]),
                choices=None if flag["choices"] is None else tuple(flag["choices"]),
            )
            for flag in json.loads(text)
        )
    except (ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> tuple[KnownFlag, ...] | None:
    try:
        return _parsed(path.read_text(encoding="utf-8")) or None
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    """In one step; a cache that cannot be written costs time, nothing else."""
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
