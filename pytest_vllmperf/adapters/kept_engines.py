"""Engines that outlive their run: one private file each, with all the next run needs to use the same server.

Whoever uses one holds a lock on the file beside it, and sets that file's time; its guardian looks at both.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_vllmperf.errors import EngineError

__all__ = [
    "Borrowed",
    "KeptEngine",
    "guardians_in",
    "is_used",
    "kept_engines",
    "process_start",
    "register",
    "still_runs",
    "stop",
]

_FOLDER = "kept"
_STOP_S = 70.0
"""More than the guardian takes at most: its grace, and the time it gives the kernel to end what it killed."""
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEngine:
    """One engine that is kept, as its file tells.

    Args:
        name: In the matrix of the project that launched it.
        project: That project's root directory.
        fingerprint: Equal for launches that would give the same server.
        guardians: Pids that own it, with the time each started (clock ticks from boot).
        pid, start: Its leader, likewise.
        gpu_uuids, device_baseline_bytes: GPUs it occupies, and what was in use on them before its launch.
        base_url, model_name, api_key: How to talk to it. The key is why the file is private.
        command, log_path, version: As launched.
        time_to_ready_ns, first_request_ttft_ns, cold: How its launch went.
        launched_at: Seconds since the epoch.
        idle_s: It ends by itself when nobody has used it for so long.
        uses: Runs that used it, the one that launched it included.
    """

    name: str
    project: str
    fingerprint: str
    guardians: Mapping[int, int]
    pid: int
    start: int
    gpu_uuids: tuple[str, ...]
    device_baseline_bytes: int | None
    base_url: str
    model_name: str
    api_key: str
    command: tuple[str, ...]
    log_path: str
    version: str | None
    time_to_ready_ns: int | None
    first_request_ttft_ns: int | None
    cold: bool | None
    launched_at: float
    idle_s: float
    uses: int


class Borrowed:
    """The right to use a kept engine: nobody stops it meanwhile, and nobody else measures on it.

    Args:
        runtime: The user's private folder for state files.
        fingerprint: Which engine.
    """

    def __init__(self, runtime: Path, fingerprint: str) -> None:
        self.path = _folder(runtime) / f"{fingerprint}.use"
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def take(self) -> bool:
        """True once it is ours; False when somebody uses the engine right now."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.utime(self._descriptor)
        return True

    def give_back(self) -> None:
        """Leave the engine to whoever comes next. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.utime(descriptor)
            os.close(descriptor)


def register(runtime: Path, engine: KeptEngine) -> None:
    """Write or replace the file of ``engine``.

    Raises:
        OSError: It cannot be written.
    """
    import msgspec

    path = _path(runtime, engine.fingerprint)
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(engine))
    draft.replace(path)


def kept_engines(runtime: Path) -> tuple[KeptEngine, ...]:
    """Every engine that is kept here and still runs, the oldest first. Files of those that ended are removed."""
    import msgspec

    found = []
    for path in _folder(runtime).glob("*.json"):
        try:
            engine = msgspec.json.decode(path.read_bytes(), type=KeptEngine)
        except (OSError, ValueError):  # removed meanwhile, or of another version: its guardian ends it in time
            continue
        if still_runs(engine):
            found.append(engine)
        else:
            path.unlink(missing_ok=True)
    return tuple(sorted(found, key=lambda engine: engine.launched_at))


def still_runs(engine: KeptEngine) -> bool:
    """Whether the engine and a guardian of it are there: the very processes, not others with their numbers."""
    guarded = any(process_start(pid) == start for pid, start in engine.guardians.items())
    return guarded and process_start(engine.pid) == engine.start


def is_used(runtime: Path, engine: KeptEngine) -> bool:
    """Whether a run measures on ``engine`` right now."""
    try:
        with (_folder(runtime) / f"{engine.fingerprint}.use").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def stop(runtime: Path, engine: KeptEngine, *, waiting: Callable[[], None] = lambda: None) -> None:
    """End ``engine`` with everything it started, and wait until it is gone.

    Raises:
        EngineError: It is still there after the time its guardian takes at most.
    """
    deadline = time.monotonic() + _STOP_S
    for pid, start in engine.guardians.items():
        if process_start(pid) == start:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    while any(process_start(pid) == start for pid, start in engine.guardians.items()):
        if time.monotonic() > deadline:
            raise EngineError(
                f"engine {engine.name!r} (pid {engine.pid}) did not end within {_STOP_S:g} s; it may hold memory and "
                "GPUs until the machine restarts"
            )
        waiting()
        time.sleep(_POLL_S)
    _path(runtime, engine.fingerprint).unlink(missing_ok=True)


def guardians_in(state_path: Path) -> dict[int, int]:
    """Pid and start of each guardian, as its state file tells; empty where that is gone."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return {int(pid): int(start) for pid, start in json.loads(state_path.read_bytes())["guardians"].items()}
    return {}


def process_start(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks from boot; None when it is no more than a zombie, or gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _folder(runtime: Path) -> Path:
    folder = runtime / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _path(runtime: Path, fingerprint: str) -> Path:
    return _folder(runtime) / f"{fingerprint}.json"
