"""One engine's operating-system side: its port, its process tree, its log file, and leaving nothing behind."""

from __future__ import annotations

import atexit
import contextlib
import fnmatch
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.engine import Device, EngineConfig, flags
from pytest_vllmperf.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import psutil

__all__ = ["EngineProcess", "child_environment", "free_port", "is_port_free", "launch_command", "missing_model"]

_LOOPBACK = "127.0.0.1"
_SHM = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory; only inspected, never created in
_SHM_NAMES = ("psm_*", "sem.mp-*", "sem.loky-*", "vllm*", "torch_*", "nccl-*")
"""Shared memory a killed engine leaves: Python's, vLLM's offload tier, PyTorch's and NCCL's."""
_SOCKET_ROOM = 60
"""Longest folder that still fits vLLM's unix sockets under it: their paths may have 107 bytes in all."""
_POLL_S = 0.02
_KILL_DEADLINE_S = 10.0
_MODEL_PATH = re.compile(r"(/|\./|\.\./|~)")


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_port_free(port: int) -> bool:
    """Whether ``port`` can be bound right now. vLLM itself would find out only after many seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True


def missing_model(model: str) -> Path | None:
    """The path ``model`` names when it is meant as one and nothing is there; None otherwise."""
    if not _MODEL_PATH.match(model):
        return None
    path = Path(model).expanduser()
    return None if path.exists() else path.absolute()


def launch_command(config: EngineConfig, *, port: int) -> tuple[str, ...]:
    """The full command line. It never holds the API key: command lines are visible to everybody."""
    start = config.command or (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    model = str(Path(config.model).expanduser()) if config.model.startswith("~") else config.model
    return (
        *start,
        *("--model", model, "--served-model-name", config.model_name),
        *("--host", _LOOPBACK, "--port", str(port)),
        *flags(config.args),
    )


def child_environment(
    config: EngineConfig, *, device: Device, api_key: str, gpu_uuids: Sequence[str], base: Mapping[str, str]
) -> dict[str, str]:
    """The engine's environment: the caller's, our defaults where it is silent, then the configuration's own.

    ``PYTHONDONTWRITEBYTECODE`` is not handed on: without compiled files a start takes more than twice as long.
    """
    env = dict(base)
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    defaults = {"VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    if Path(config.model).expanduser().is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"
    for name, value in defaults.items():
        env.setdefault(name, value)
    if gpu_uuids:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_uuids)
    return {**env, **config.env, "VLLM_API_KEY": api_key}


class EngineProcess:
    """A running command with everything it started: own process group, output straight into ``log_path``.

    The group is in the caller's session on purpose: in a session of its own the server gets its own share of
    the scheduler on Linux (autogroup), and starves the client that measures it.

    Raises:
        EngineError: The executable is missing or may not be run.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> None:
        import psutil

        self.command = tuple(command)
        self.log_path = log_path
        self._owner_pid = os.getpid()
        self._stopped = False
        self._shared: set[tuple[int, int]] = set()
        self._temporary = _short_temporary_directory()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log_path.open("wb") as log:
                self._popen = _start(self.command, env=self._with_temporary(env), log_fd=log.fileno())
        except OSError as error:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise EngineError(
                f"cannot run {self.command[0]!r}: {error.strerror or error}. Give EngineConfig(command=…) an "
                "executable that exists on this machine, by path or on PATH"
            ) from error
        self._leader = psutil.Process(self._popen.pid)
        self._seen: dict[int, psutil.Process] = {}
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """Process id of the leader; also the id of its process group."""
        return self._popen.pid

    def exit_code(self) -> int | None:
        """The leader's exit code (negative: the signal that ended it), None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the leader to end; its exit code, or None when it still runs after ``timeout_s``."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def listens_on(self, port: int) -> bool:
        """Whether a process of this tree holds the listening socket of ``port``."""
        import psutil

        for process in self._tree():
            try:
                connections = process.net_connections(kind="tcp")
            except psutil.Error:
                continue
            if any(c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port for c in connections):
                return True
        return False

    def take_stock(self) -> None:
        """Remember the processes and shared memory there are now, so that no crash can hide them from :meth:`stop`.

        A process that left its group is found only as long as its parent lives.
        """
        for process in self._tree():
            self._seen[process.pid] = process
            self._shared |= _shared_memory_of(process.pid)

    def stop(self, grace_s: float = 5.0) -> None:
        """End the whole tree and remove what it leaves. Idempotent.

        SIGTERM to the leader, ``grace_s`` for everybody to leave, then SIGKILL to the group and to every
        descendant that is left, even one that moved to another group.

        Raises:
            EngineError: Something survived SIGKILL (a process stuck in a driver).
        """
        if self._stopped or os.getpid() != self._owner_pid:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        self.take_stock()
        if self._popen.poll() is None:
            self._popen.terminate()
            self._popen.send_signal(signal.SIGCONT)  # a suspended process hears nothing else
            self._linger(grace_s)
        survivors = self._kill()
        _remove_shared_memory(self._shared)
        shutil.rmtree(self._temporary, ignore_errors=True)
        if survivors:
            raise EngineError(
                f"processes {', '.join(str(p.pid) for p in survivors)} of {self.command[0]!r} survived SIGKILL for "
                f"{_KILL_DEADLINE_S:g} s; they may hold memory and GPUs until the machine restarts"
            )

    def _with_temporary(self, env: Mapping[str, str]) -> dict[str, str]:
        # PyTorch keeps its kernels under TMPDIR unless told otherwise: they must survive this launch.
        kernels = {"TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"torchinductor_uid_{os.getuid()}")}
        return {**kernels, **env, "TMPDIR": str(self._temporary)}

    def _tree(self) -> list[psutil.Process]:
        """The leader, its descendants and whoever else is in its group (orphans of a dead leader)."""
        import psutil

        found: dict[int, psutil.Process] = {}
        if self._leader.is_running():
            with contextlib.suppress(psutil.Error):
                found = {p.pid: p for p in (self._leader, *self._leader.children(recursive=True))}
        elif psutil.pid_exists(self.pid):
            return []  # its id is in use again, which the kernel allows only when nobody is left in its group
        for pid in psutil.pids():
            if pid not in found and _group_of(pid) == self.pid:
                try:
                    found[pid] = psutil.Process(pid)
                except psutil.Error:
                    continue
        return list(found.values())

    def _linger(self, grace_s: float) -> None:
        """Wait until all have left, ``grace_s`` at most; whoever turns up meanwhile must leave too."""
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            self._popen.poll()
            self._seen.update({p.pid: p for p in self._tree()})
            if not _alive(self._seen.values()):
                break
            time.sleep(_POLL_S)

    def _kill(self) -> list[psutil.Process]:
        """SIGKILL everybody until nobody is left; whoever survived the deadline."""
        import psutil

        deadline = time.monotonic() + _KILL_DEADLINE_S
        while True:
            self._popen.poll()
            alive = _alive([*self._seen.values(), *self._tree()])
            if not alive or time.monotonic() > deadline:
                break
            for process in alive:
                with contextlib.suppress(psutil.Error):  # it ended by itself
                    process.kill()
            time.sleep(_POLL_S)
        self.wait(0)
        return alive


def _start(command: Sequence[str], *, env: Mapping[str, str], log_fd: int) -> subprocess.Popen[bytes]:
    if sys.version_info >= (3, 11):
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log_fd, stderr=subprocess.STDOUT, process_group=0
        )
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=subprocess.STDOUT,
        preexec_fn=os.setpgrp,  # noqa: PLW1509 - the only way before 3.11; setpgrp takes no lock
    )


def _short_temporary_directory() -> Path:
    parent = tempfile.gettempdir()
    if len(parent) > _SOCKET_ROOM:
        parent = "/tmp"  # noqa: S108 - the folder made in it is private; a longer path breaks unix sockets
    return Path(tempfile.mkdtemp(prefix="vllmperf-", dir=parent))


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those still running: a zombie is dead, and so is a process whose id now belongs to another."""
    import psutil

    alive: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            if process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                alive[process.pid] = process
    return list(alive.values())


def _shared_memory_of(pid: int) -> set[tuple[int, int]]:
    """(device, inode) of each file in /dev/shm that ``pid`` maps or holds open.

    Not the name: a semaphore is mapped under the temporary name it was made with.
    """
    files: set[tuple[int, int]] = set()
    try:
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(f"{_SHM}/"):
                major, _, minor = fields[3].partition(":")
                files.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if str(link.readlink()).startswith(f"{_SHM}/"):
                status = link.stat()
                files.add((status.st_dev, status.st_ino))
    except OSError:
        pass  # the process ended while we looked; what was found so far counts
    return files


def _remove_shared_memory(files: set[tuple[int, int]]) -> None:
    if not files:
        return
    for path in _SHM.iterdir():
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in _SHM_NAMES):
            continue
        try:
            status = path.lstat()
            if (status.st_dev, status.st_ino) in files:
                path.unlink()
        except OSError:
            continue
