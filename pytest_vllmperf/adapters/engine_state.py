"""Where guardians note what they guard, and ending what a killed guardian left, at the start of the next run."""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pytest_vllmperf.errors import EngineError

__all__ = ["Leftover", "new_state_path", "reap_leftovers", "runtime_directory"]

_GUARDIAN = Path(__file__).with_name("guardian")
_NAME = "pytest-vllmperf"
_REAP_S = 90.0
"""More than the reaper itself takes at most, which is the time it gives the kernel to end what it killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What an engine of an earlier run had left: pids that were killed, and pids that survived SIGKILL."""

    killed: tuple[int, ...]
    survivors: tuple[int, ...]


def runtime_directory() -> Path:
    """The user's private folder for state files, made on first use.

    In ``XDG_RUNTIME_DIR`` where there is one, else in the temporary directory.

    Raises:
        EngineError: It belongs to somebody else, or others may write in it.
    """
    session = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")
    if session.is_dir() and os.access(session, os.W_OK):
        folder = session / _NAME
    else:
        folder = Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise EngineError(
            f"{folder} must be a folder of user {os.getuid()} that nobody else may write to, and is of user "
            f"{status.st_uid} with mode {status.st_mode & 0o7777:o}: remove it, or set XDG_RUNTIME_DIR to a folder "
            "of your own"
        )
    return folder


def new_state_path(directory: Path) -> Path:
    """A path in ``directory`` for one more engine."""
    return directory / f"{os.getpid()}-{secrets.token_hex(4)}.json"


def reap_leftovers(directory: Path) -> tuple[Leftover, ...]:
    """End what earlier runs left, where nobody guards it any more, and remove its files.

    A process is ended only when its number, its start time and the machine's boot are the noted ones; engines of
    runs that are still going on are left alone.
    """
    paths = sorted(directory.glob("*.json"))
    if not paths:
        return ()
    command = (sys.executable, "-I", "-S", str(_GUARDIAN), "reap", *map(str, paths))
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_REAP_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # the next run tries again; nothing of this one depends on it
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return tuple(
        Leftover(killed=tuple(said["killed"]), survivors=tuple(said["survivors"]))
        for said in found
        if said["killed"] or said["survivors"]
    )
