"""The flags the installed vLLM knows, asked of its own parser and kept: importing vLLM takes many seconds."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from pytest_vllmperf.domain.flag_check import KnownFlag

__all__ = ["known_flags"]

_TIMEOUT_S = 180.0
_MARK = "vllm-flags:"
_QUESTION = f"""
import json, sys
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:
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


def known_flags(
    python: str, *, version: str, stamp: str, telling: Callable[[str], None] = lambda _line: None
) -> tuple[KnownFlag, ...] | None:
    """Every flag of the vLLM that ``python`` has; None where its parser cannot be asked.

    Args:
        python: The interpreter.
        version: Of its vLLM.
        stamp: Changes whenever that vLLM's files do (a checkout changes without its version).
        telling: Called with a line when it takes long, which it does once for each version.
    """
    return _known_flags(python, version, stamp, telling)


@functools.cache
def _known_flags(python: str, version: str, stamp: str, telling: Callable[[str], None]) -> tuple[KnownFlag, ...] | None:
    path = _cache_path(python, version, stamp)
    kept = _read(path)
    if kept is None:
        telling(f"asking vLLM {version} which flags it knows (once for each version)")
        kept = _ask(python)
        if kept is not None:
            _write(path, kept)
    return None if kept is None else _parsed(kept)


def _cache_path(python: str, version: str, stamp: str) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256("\0".join((python, version, stamp, _QUESTION)).encode()).hexdigest()[:24]
    return home / "pytest-vllmperf" / "flags" / f"{name}.json"


def _ask(python: str) -> str | None:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    try:
        done = subprocess.run(
            (python, "-c", _QUESTION),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            env=env,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(_MARK))
    told = next(lines, None)
    return None if told is None else told.removeprefix(_MARK)


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


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    return text if _parsed(text) else None


def _write(path: Path, text: str) -> None:
    """In one step; a cache that cannot be written costs time, nothing else."""
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
