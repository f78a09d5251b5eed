"""Host memory and /dev/shm that engines reserve up front, so that several offloading tiers never start together.

Each reservation is a file locked by the kernel for as long as its holder lives, whoever that is, like a GPU's lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_vllmperf.domain.pacing import Reminder
from pytest_vllmperf.errors import EngineError

__all__ = ["HostBudget", "available_memory_bytes", "memory_limit_bytes"]

_GIB = 2**30
_MOST = 0.9
"""Share of the memory that reservations may take together: the rest is for everything else."""
_POLL_S = 0.1
_SHM = Path("/dev/shm")  # noqa: S108 - where vLLM keeps its tier; nothing is made there
_CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    host: int
    shared: int
    note: str


def memory_limit_bytes() -> int:
    """Memory this process and its engines may use: the machine's, or less where a container is limited."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in _CGROUP:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(path.read_text()))
    return total


def available_memory_bytes() -> int:
    """Memory that can be had right now without swapping, as far as the machine tells."""
    import psutil

    return min(int(psutil.virtual_memory().available), memory_limit_bytes())


class HostBudget:
    """What one process has reserved of its host's memory.

    Args:
        directory: Where the files are; None where no other process launches engines.
        project: Named to whoever has to wait.
    """

    def __init__(self, directory: Path | None, *, project: str = "") -> None:
        self._directory = directory
        self._project = project
        self._mine: dict[str, tuple[Path | None, int | None, _Held]] = {}

    def reserve(
        self, engine: str, *, host: int, shared: int, waiting: Callable[[str], None] = lambda _line: None
    ) -> None:
        """Wait until ``host`` bytes of memory, ``shared`` of them in /dev/shm, fit beside what others reserved.

        Raises:
            EngineError: They never will: the machine has less, or less is free and nobody is about to free any.
        """
        if not host and not shared:
            return
        wanted = _Held(host=host, shared=shared, note=f"engine {engine!r} of {self._project} (pid {os.getpid()})")
        reminder = Reminder(started_s=time.monotonic())
        while True:
            others = self._try(engine, wanted)
            if others is None:
                return
            if not others:
                raise EngineError(_never(engine, wanted))
            now = time.monotonic()
            if reminder.due(now):
                waiting(
                    f"{engine}: waiting {now - reminder.started_s:.0f} s for {host / _GIB:.3g} GiB of host memory, "
                    f"reserved by {'; '.join(sorted(other.note for other in others))}"
                )
            time.sleep(_POLL_S)

    def descriptors(self, engine: str) -> tuple[int, ...]:
        """The open lock file of what ``engine`` reserved, for a process that is to hold it as well."""
        mine = self._mine.get(engine)
        return () if mine is None or mine[1] is None else (mine[1],)

    def give_back(self, engine: str) -> None:
        """Free what ``engine`` reserved. Idempotent."""
        path, descriptor, _ = self._mine.pop(engine, (None, None, None))
        if descriptor is not None:
            os.close(descriptor)
        if path is not None and _is_free(path):  # a guardian that is not done yet holds it on
            path.unlink(missing_ok=True)

    def _try(self, engine: str, wanted: _Held) -> list[_Held] | None:
        """Reserve; or, where it does not fit, who has reserved what."""
        own = [held for _, _, held in self._mine.values()]
        if self._directory is None:
            return self._fit(engine, wanted, own, path=None)
        try:
            self._directory.mkdir(mode=0o1777, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            master = os.open(self._directory / "memory.lock", flags, 0o666)
        except OSError as error:
            raise EngineError(f"host memory cannot be shared out: {error}; set VLLMPERF_LOCK_DIR") from error
        try:
            with contextlib.suppress(PermissionError):
                os.fchmod(master, 0o666)
            fcntl.flock(master, fcntl.LOCK_EX)
            path = self._directory / f"memory-{os.getpid()}-{secrets.token_hex(4)}.json"
            return self._fit(engine, wanted, _reservations(self._directory), path=path)
        finally:
            os.close(master)

    def _fit(self, engine: str, wanted: _Held, others: list[_Held], *, path: Path | None) -> list[_Held] | None:
        host, shared = sum(o.host for o in others), sum(o.shared for o in others)
        room = host + wanted.host <= _MOST * memory_limit_bytes() and wanted.host <= available_memory_bytes()
        if not room or (others and shared + wanted.shared > _shm_bytes()):
            return others
        self._mine[engine] = (path, None if path is None else _write(path, wanted), wanted)
        return None


def _never(engine: str, wanted: _Held) -> str:
    return (
        f"engine {engine!r} reserves {wanted.host / _GIB:.3g} GiB of host memory (kv-offloading-size, cpu-offload-gb), "
        f"and {available_memory_bytes() / _GIB:.3g} of {memory_limit_bytes() / _GIB:.3g} GiB are available: lower "
        "them, or free memory; the kernel would end the engine"
    )


def _reservations(directory: Path) -> list[_Held]:
    """What living processes have reserved; files of dead ones are removed."""
    found = []
    for path in directory.glob("memory-*.json"):
        if _is_free(path):
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            plain = json.loads(path.read_text(encoding="utf-8"))
            found.append(_Held(host=int(plain["host"]), shared=int(plain["shared"]), note=str(plain["note"])))
    return found


def _is_free(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _write(path: Path, held: _Held) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, json.dumps({"host": held.host, "shared": held.shared, "note": held.note}).encode())
    return descriptor


def _shm_bytes() -> int:
    try:
        size = os.statvfs(_SHM)
    except OSError:
        return 0
    return size.f_frsize * size.f_blocks
