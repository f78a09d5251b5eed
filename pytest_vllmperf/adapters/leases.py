"""Who may use which GPU of this host, or measure on its CPU: files locked by the kernel, whoever asks.

A lock ends with its process, however that ends, so nothing is ever left behind. The files are shared by all users of
the host; what stands in them only tells who waits for whom.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pytest_vllmperf.domain.pacing import Reminder
from pytest_vllmperf.errors import EngineError

__all__ = ["HostLeases", "lease_directory"]

_CPU = "cpu"
_MOUNTS = Path("/proc/self/mounts")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "fuse.sshfs")
_POLL_S = 0.1


def lease_directory() -> Path:
    """Where the files are: ``VLLMPERF_LOCK_DIR``, else one folder for the whole host, whatever ``TMPDIR`` says."""
    return Path(os.environ.get("VLLMPERF_LOCK_DIR") or "/tmp/vllmperf-locks")  # noqa: S108 - opened without following links


class HostLeases:
    """What one process holds of its host.

    Args:
        directory: Where the lock files are; None where no other process launches engines.
        share_cpu: Let engines on the CPU run beside those of other processes. They disturb each other:
            without it, an engine waits until no other process runs one here.
        project: Named to whoever has to wait.
    """

    def __init__(self, directory: Path | None, *, share_cpu: bool = False, project: str = "") -> None:
        self._directory = directory
        self._share_cpu = share_cpu
        self._project = project
        self._held: dict[str, dict[str, int]] = {}

    def take(
        self,
        engine: str,
        *,
        gpus: Sequence[str],
        count: int,
        waiting: Callable[[str], None] | None = None,
        sharing: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """Wait until ``count`` of ``gpus`` are free, and hold those; where there are none, hold the CPU.

        ``sharing`` names, for GPUs this process holds already, the engine that lets another use them (it sleeps).

        All or nothing: whoever waits holds nothing, so that two engines can never wait for each other.
        ``waiting`` is called with a line that names the holders, after a second and every half minute.

        Raises:
            EngineError: The lock files cannot be opened.
        """
        if self._directory is None:
            return tuple(gpus[:count])
        wanted = tuple(gpus) if gpus else self._cpu_wanted()
        count = count if gpus else len(wanted)
        reminder = Reminder(started_s=time.monotonic())
        while True:
            with _told():
                held = self._try(self._directory, engine, wanted, count, sharing or {})
            if held is not None:
                self._held[engine] = held
                return tuple(held) if gpus else ()
            now = time.monotonic()
            if waiting and reminder.due(now):
                what = _describe(self._directory, wanted, count)
                waiting(f"{engine}: waiting {now - reminder.started_s:.0f} s for {what}")
            time.sleep(_POLL_S)

    def descriptors(self, engine: str) -> tuple[int, ...]:
        """The open lock files of the GPUs ``engine`` holds, for a process that is to hold them as well."""
        return tuple(descriptor for name, descriptor in self._held.get(engine, {}).items() if name != _CPU)

    def give_back(self, engine: str) -> None:
        """Free what ``engine`` holds; what other engines of this process hold with it stays held. Idempotent."""
        held = self._held.pop(engine, {})
        if _CPU in held and self._held:
            next(iter(self._held.values()))[_CPU] = held.pop(_CPU)
        for descriptor in held.values():
            os.close(descriptor)

    @contextlib.contextmanager
    def alone(
        self,
        engine: str,
        *,
        lock: str,
        what: str,
        over: Callable[[], bool] = lambda: False,
        waiting: Callable[[str], None] = lambda _line: None,
    ) -> Iterator[None]:
        """For ``with``: no other process is inside under the same name of a ``lock``; ends with this process.

        ``over`` tells that there is nothing left to wait for. ``waiting`` is called as by :meth:`take`, naming
        ``what`` is waited for.

        Raises:
            EngineError: The lock file cannot be opened.
        """
        if self._directory is None:
            yield
            return
        with _told():
            self._make(self._directory)
            path = _path(self._directory, lock)
            descriptor = _open(path)
        reminder = Reminder(started_s=time.monotonic())
        try:
            while not (locked := _locked(descriptor)) and not over():
                now = time.monotonic()
                if reminder.due(now):
                    holder = path.read_text(encoding="utf-8", errors="replace").strip() or "somebody"
                    waiting(f"{engine}: waiting {now - reminder.started_s:.0f} s for {what}, held by {holder}")
                time.sleep(_POLL_S)
            if locked:
                _note(descriptor, f"engine {engine!r} of {self._project} (pid {os.getpid()})")
            yield
        finally:
            os.close(descriptor)

    def _cpu_wanted(self) -> tuple[str, ...]:
        """The CPU, unless it is shared, or held already: engines of one process run beside each other on purpose."""
        held = any(_CPU in held for held in self._held.values())
        return () if self._share_cpu or held else (_CPU,)

    @staticmethod
    def _make(directory: Path) -> None:
        _check_directory(directory)
        directory.mkdir(mode=0o1777, parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):  # another user's: it has the mode they gave it
            directory.chmod(0o1777)

    def _try(
        self, directory: Path, engine: str, wanted: Sequence[str], count: int, sharing: Mapping[str, str]
    ) -> dict[str, int] | None:
        self._make(directory)
        held: dict[str, int] = {}
        with contextlib.ExitStack() as undo:
            master = _open(directory / "all.lock")
            undo.callback(os.close, master)
            fcntl.flock(master, fcntl.LOCK_EX)  # held for an instant: taking several is one step for all others
            for name in wanted:
                if len(held) == count:
                    break
                shared = self._held.get(sharing.get(name, ""), {}).get(name)
                if shared is not None:
                    held[name] = os.dup(shared)  # the lock is held until both are closed
                    continue
                descriptor = _open(_path(directory, name))
                if _locked(descriptor):
                    held[name] = descriptor
                else:
                    os.close(descriptor)
            if len(held) < count:
                for descriptor in held.values():
                    os.close(descriptor)
                return None
        for descriptor in held.values():
            _note(descriptor, f"engine {engine!r} of {self._project} (pid {os.getpid()})")
        return held


def _check_directory(directory: Path) -> None:
    """Raise where locks would not hold: through a link somebody prepared, or on a file system without real ones.

    Raises:
        OSError: The folder is a link, or lies on a network file system.
    """
    if directory.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which somebody may have prepared", str(directory))
    kind = _file_system(directory)
    if kind in _NETWORK:
        raise OSError(errno.ENOLCK, f"lies on a network file system ({kind}), whose locks do not hold", str(directory))


def _file_system(directory: Path) -> str:
    """The type of file system ``directory`` is, or will be, on; empty where the machine does not tell."""
    try:
        mounts = [line.split() for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    where = str(directory.absolute())
    on = [(len(m[1]), m[2]) for m in mounts if len(m) > 2 and (where + "/").startswith(m[1].rstrip("/") + "/")]
    return max(on, default=(0, ""))[1]


def _describe(directory: Path, wanted: Sequence[str], count: int) -> str:
    """What is waited for and who has it, as far as the files tell."""
    what = "the CPU (--vllmperf-share-cpu to run beside)" if wanted == (_CPU,) else f"{count} of {len(wanted)} GPUs"
    with contextlib.suppress(OSError):
        notes = {_path(directory, name).read_text(encoding="utf-8", errors="replace").strip() for name in wanted}
        return f"{what}, held by {'; '.join(sorted(notes - {''})) or 'somebody'}"
    return what


def _path(directory: Path, name: str) -> Path:
    return directory / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.lock"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(
            f"engines cannot be kept from each other: {error}; set VLLMPERF_LOCK_DIR to a folder that everybody "
            "who launches engines on this host can write to"
        ) from error


def _open(path: Path) -> int:
    """Open a lock file, made where it is missing. Never through a link; another user's is enough to read."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
        os.fchmod(made, 0o666)
        return made
    try:
        return os.open(path, os.O_RDWR | flags)
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _note(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # opened to read only
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
