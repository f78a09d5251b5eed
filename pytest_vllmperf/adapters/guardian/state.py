"""What is known about one engine, in a file that whoever is left can end and clean it up by."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_vllmperf.adapters.guardian.processes import Task

__all__ = ["State", "boot_id", "pid_namespace"]

_SHM = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory; nothing is made there
_SHM_NAMES = ("psm_*", "sem.mp-*", "sem.loky-*", "vllm*", "torch_*", "nccl-*")
"""Shared memory a killed engine leaves: Python's, vLLM's offload tier, PyTorch's and NCCL's."""
_TEMPORARY_PREFIX = "vllmperf-"


def boot_id() -> str:
    """Names the time since this machine was started, in which a process's number and start mean something."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    """Names the container in which a process's number means something."""
    return str(Path("/proc/self/ns/pid").readlink())


@dataclass(slots=True, kw_only=True)
class State:
    """One engine: its processes by number and start, and what of theirs would outlive them.

    Processes are known by (pid, clock ticks from boot to start), shared memory by (device, inode).
    """

    boot_id: str
    pid_namespace: str
    command_sha256: str
    temporary: str
    leader: int | None = None
    guardians: dict[int, int]
    processes: dict[int, int]
    shared_memory: set[tuple[int, int]]

    @classmethod
    def load(cls, path: Path) -> State | None:
        """The state in ``path``; None when it is gone, another user's, or no state."""
        try:
            if path.lstat().st_uid != os.getuid():
                return None
            plain = json.loads(path.read_bytes())
            for name in ("guardians", "processes"):
                plain[name] = {int(pid): start for pid, start in plain[name].items()}
            plain["shared_memory"] = {(device, inode) for device, inode in plain["shared_memory"]}
            return cls(**plain)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, path: Path) -> None:
        """Replace the file in one step. A full disk is no reason to fail: ending the engine needs no file."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["shared_memory"] = sorted(self.shared_memory)
        draft = path.with_suffix(".draft")
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(plain, file)
            draft.replace(path)

    def take_stock(self, tasks: Iterable[Task]) -> None:
        """Note these processes and their shared memory."""
        for task in tasks:
            self.processes[task.pid] = task.start
            self.shared_memory |= _shared_memory_of(task.pid)

    def clean_up(self, path: Path) -> None:
        """Remove what the dead left. ``path`` goes last: as long as it is there, this was not finished."""
        if self.shared_memory:
            _remove_shared_memory(self.shared_memory)
        _remove_temporary(Path(self.temporary))
        path.unlink(missing_ok=True)


def _shared_memory_of(pid: int) -> set[tuple[int, int]]:
    """(device, inode) of each file in /dev/shm that ``pid`` maps or holds open.

    Not the name: a semaphore is mapped under the temporary name it was made with.
    """
    files: set[tuple[int, int]] = set()
    with contextlib.suppress(OSError):  # it ended while we looked; what was found so far counts
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(f"{_SHM}/"):
                major, _, minor = fields[3].partition(":")
                files.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if str(link.readlink()).startswith(f"{_SHM}/"):
                status = link.stat()
                files.add((status.st_dev, status.st_ino))
    return files


def _remove_shared_memory(files: set[tuple[int, int]]) -> None:
    for path in _SHM.iterdir():
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in _SHM_NAMES):
            continue
        with contextlib.suppress(OSError):  # removed meanwhile
            status = path.lstat()
            if (status.st_dev, status.st_ino) in files:
                path.unlink()


def _remove_temporary(folder: Path) -> None:
    import shutil

    with contextlib.suppress(OSError):  # removed meanwhile
        if folder.name.startswith(_TEMPORARY_PREFIX) and folder.lstat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
