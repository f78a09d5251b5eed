"""One engine's processes: started, watched over, stopped, and nothing of them left behind."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["EngineProcess"]

_GUARDIAN = Path(__file__).with_name("guardian")
_SOCKET_ROOM = 50
"""Longest folder that still fits vLLM's unix sockets under it: their paths may have 107 bytes in all."""
_START_S = 30.0
"""How long the guardian may take to start a command, on however busy a machine."""
_ANSWER_S = 5.0
_KILL_DEADLINE_S = 60.0
"""How long the guardian tries to kill; the margin above it is :data:`_ANSWER_S`."""
_REAP_S = 90.0
"""More than the reaper itself takes at most."""


class EngineProcess:
    """A running command with everything it started: own process group, output straight into ``log_path``.

    Its parent is a guardian (see :mod:`pytest_vllmperf.adapters.guardian`), which ends all of it as soon as this
    process ends in any way. The group is in the caller's session on purpose: in a session of its own the server
    gets its own share of the scheduler on Linux (autogroup), and starves the client that measures it.

    Args:
        command: What to run.
        env: Its whole environment.
        log_path: Where its output goes; its folder is made.
        state_path: Where the guardian notes what must be ended should it be killed itself; by default a file
            beside the private temporary folder, which no later run looks for.
        leases: Open lock files that are to stay locked until the guardian ends, should the engine be kept.

    Raises:
        EngineError: The executable is missing or may not be run.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: Path,
        state_path: Path | None = None,
        leases: Sequence[int] = (),
    ) -> None:
        self.command = tuple(command)
        self.log_path = log_path
        self._owner_pid = os.getpid()
        self._stopped = False
        self._pid = 0
        self._code: int | None = None
        self._errno: int | None = None
        self._stocked = self._lost = self._kept = False
        self._leases = tuple(leases)
        self._survivors: tuple[int, ...] | None = None
        self._unread = b""
        self._temporary = _short_temporary_directory()
        self._state_path = state_path or self._temporary.with_suffix(".json")
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.unlink(missing_ok=True)
        with log_path.open("ab") as log:  # appending: the guardian cuts out its middle when it grows too large
            self._guardian = _start_guardian(self._state_path, log_fd=log.fileno(), leases=self._leases)
        try:
            self._launch(self._with_temporary(env))
        except BaseException:  # also Ctrl-C: the end of the lifeline ends whatever was started
            self._leave()
            raise
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """Process id of the leader; also the id of its process group."""
        return self._pid

    @property
    def lost_guardian(self) -> bool:
        """Whether the guardian was killed, and with it the engine."""
        self._listen(0.0)
        return self._lost

    def exit_code(self) -> int | None:
        """The leader's exit code (negative: the signal that ended it), None while it runs."""
        self._listen(0.0)
        return self._code

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the leader to end; its exit code, or None when it still runs after ``timeout_s``."""
        self._await(lambda: self._code is not None, timeout_s)
        return self._code

    def listens_on(self, port: int) -> bool:
        """Whether a process of this tree holds the listening socket of ``port``."""
        import psutil

        try:
            tree = psutil.Process(self._guardian.pid).children(recursive=True)
        except psutil.Error:
            return False
        for process in tree:
            try:
                connections = process.net_connections(kind="tcp")
            except psutil.Error:
                continue
            if any(c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port for c in connections):
                return True
        return False

    def take_stock(self) -> None:
        """Let the guardian note which processes and shared memory there are now.

        What it noted is removed even when the process that held it crashed, and ended by the next run even when the
        guardian was killed. Costs about as much as reading each process's memory map: not for during a measurement.
        """
        self._stocked = False
        if self._tell("stock"):
            self._await(lambda: self._stocked, _ANSWER_S)

    def stop(self, grace_s: float = 5.0) -> None:
        """End the whole tree and remove what it leaves. Idempotent.

        SIGTERM to the leader, ``grace_s`` for everybody to leave, then SIGKILL to every descendant that is left,
        even one that moved to another group or lost its parent. Ctrl-C cuts the grace short.

        Raises:
            EngineError: Something survived SIGKILL (a process stuck in a driver).
        """
        if self._stopped or os.getpid() != self._owner_pid:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        try:
            if self._tell(f"stop {grace_s}"):
                self._await(lambda: self._survivors is not None, grace_s + _KILL_DEADLINE_S + _ANSWER_S)
        except BaseException:  # Ctrl-C: no more grace
            self._tell("stop 0")
            raise
        finally:
            self._leave()
        if self._survivors:
            raise EngineError(
                f"processes {', '.join(map(str, self._survivors))} of {self.command[0]!r} survived SIGKILL for "
                f"{_KILL_DEADLINE_S:g} s; they may hold memory and GPUs until the machine restarts"
            )

    def keep(self, *, idle_s: float, use: Path) -> bool:
        """Let the engine outlive this process, until nobody has locked or touched ``use`` for ``idle_s``.

        False when the guardian did not agree; the engine then ends with this process, as ever.
        """
        if self._tell(f"keep {idle_s} {use}"):
            self._await(lambda: self._kept, _ANSWER_S)
        return self._kept

    @property
    def state_path(self) -> Path:
        """Where the guardian notes what it guards."""
        return self._state_path

    def detach(self) -> None:
        """Let go of a kept engine, which goes on without this process. Idempotent."""
        if self._stopped or os.getpid() != self._owner_pid:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        for pipe in (self._guardian.stdin, self._guardian.stdout):
            if pipe is not None:
                pipe.close()
        self._guardian.returncode = 0  # it is nobody's child to wait for any more

    # ------------------------------------------------------------------ the guardian

    def _launch(self, env: Mapping[str, str]) -> None:
        """Give the launch order and hear what became of it.

        Raises:
            EngineError: The command could not be run.
        """
        order = {
            "command": self.command,
            "env": dict(env),
            "temporary": str(self._temporary),
            "leases": self._leases,
            # A worker of pytest-xdist outlives a killed controller by seconds; nobody waits for its results.
            "owners": [os.getppid()] if "PYTEST_XDIST_WORKER" in os.environ else [],
            "command_sha256": hashlib.sha256("\0".join(self.command).encode()).hexdigest(),
        }
        if self._tell(json.dumps(order)):
            self._await(lambda: self._pid or self._errno is not None, _START_S)
        if self._errno is not None:
            raise EngineError(
                f"cannot run {self.command[0]!r}: {os.strerror(self._errno)}. Give EngineConfig(command=…) an "
                "executable that exists on this machine, by path or on PATH"
            )
        if not self._pid:
            raise EngineError(
                f"cannot run {self.command[0]!r}: the guardian that should start it ended, or did not answer for "
                f"{_START_S:g} s; its last words are in {self.log_path}"
            )

    def _leave(self) -> None:
        """Let go of the lifeline, wait until the guardian has finished, and finish what it could not."""
        assert self._guardian.stdin is not None
        assert self._guardian.stdout is not None
        self._guardian.stdin.close()
        self._await(lambda: False, _KILL_DEADLINE_S + _ANSWER_S)
        self._guardian.stdout.close()
        try:
            self._guardian.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            self._kill_guardian()
        if self._state_path.exists() and not self._survivors:
            reaper = (sys.executable, "-I", "-S", str(_GUARDIAN), "reap", str(self._state_path))
            with contextlib.suppress(subprocess.TimeoutExpired):  # the next run tries again
                subprocess.run(reaper, stdin=subprocess.DEVNULL, capture_output=True, timeout=_REAP_S, check=False)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _kill_guardian(self) -> None:
        """End a guardian that does not react (somebody suspended it), so that its engine can be ended without it."""
        import psutil

        with contextlib.suppress(psutil.Error):
            for half in psutil.Process(self._guardian.pid).children():
                half.kill()
        self._guardian.kill()
        self._guardian.wait()

    def _tell(self, command: str) -> bool:
        """Say it to the guardian; False when it is not there any more."""
        assert self._guardian.stdin is not None
        try:
            data = memoryview(f"{command}\n".encode())
            while data:
                data = data[self._guardian.stdin.write(data) :]
        except BrokenPipeError:
            return False
        return True

    def _await(self, done: Callable[[], object], timeout_s: float) -> None:
        """Listen until ``done()``, the guardian's end or the timeout."""
        deadline = time.monotonic() + timeout_s
        while not done() and self._listen(max(0.0, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                return

    def _listen(self, timeout_s: float) -> bool:
        """Take in what the guardian says within ``timeout_s``; False when it will say nothing more."""
        stdout = self._guardian.stdout
        assert stdout is not None
        if stdout.closed:
            return False
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return True
        data = os.read(stdout.fileno(), 4096)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._hear(*line.decode().split())
        if not data and self._pid and self._code is None:
            self._lost, self._code = True, -signal.SIGKILL  # the engine dies with its parent
        return bool(data)

    def _hear(self, what: str, *numbers: str) -> None:
        if what == "started":
            self._pid = int(numbers[0])
        elif what == "failed":
            self._errno = int(numbers[0])
        elif what == "exited":
            self._code = int(numbers[0])
        elif what == "kept":
            self._kept = True
        elif what == "stocked":
            self._stocked = True
        elif what == "lost":
            self._lost = True
        elif what == "stopped":
            self._survivors = tuple(map(int, numbers))

    def _with_temporary(self, env: Mapping[str, str]) -> dict[str, str]:
        # PyTorch keeps its kernels under TMPDIR unless told otherwise: they must survive this launch.
        kernels = {"TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"torchinductor_uid_{os.getuid()}")}
        return {**kernels, **env, "TMPDIR": str(self._temporary)}


def _start_guardian(state_path: Path, *, log_fd: int, leases: Sequence[int]) -> subprocess.Popen[bytes]:
    """The guardian, out of reach of Ctrl-C and of signals to the caller's group; what goes wrong in it is logged."""
    command = (sys.executable, "-I", "-S", str(_GUARDIAN), "guard", str(state_path))
    if sys.version_info >= (3, 11):
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            pass_fds=leases,
            process_group=0,
        )
    return subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log_fd,
        pass_fds=leases,
        preexec_fn=os.setpgrp,  # noqa: PLW1509 - the only way before 3.11; setpgrp takes no lock
    )


def _short_temporary_directory() -> Path:
    parent = tempfile.gettempdir()
    if len(parent) > _SOCKET_ROOM:
        parent = "/tmp"  # noqa: S108 - the folder made in it is private; a longer path breaks unix sockets
    return Path(tempfile.mkdtemp(prefix="vllmperf-", dir=parent))
