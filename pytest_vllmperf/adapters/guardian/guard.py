"""The guardian at work, and the witness that stands in for it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_vllmperf.adapters.guardian.log import trim
from pytest_vllmperf.adapters.guardian.processes import collect, descendants, kill_descendants, task_of
from pytest_vllmperf.adapters.guardian.state import State, boot_id, pid_namespace

__all__ = ["guard"]

_LIFELINE, _ANSWERS, _LOG = 0, 1, 2
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK_MS = 1000.0
"""How often to look at the log, and whether a kept engine is still wanted: that costs one fstat."""
_STOP = b"stop 5\n"
_UNUSABLE = 22
"""EINVAL: a command or environment that no program can be given."""


def guard(path: Path) -> None:
    """Read the launch order from stdin, then become witness and guardian. Notes go to ``path``."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    order = json.loads(line)
    for lease in order["leases"]:
        os.set_inheritable(lease, False)  # ours until we end, and not the engine's
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    state = State(
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
        command_sha256=order["command_sha256"],
        temporary=order["temporary"],
        guardians={},
        processes={},
        shared_memory=set(),
    )
    owners = [fd for pid in (os.getppid(), *order["owners"]) for fd in _watch(pid)]
    alive, hold = os.pipe()
    guardian = os.fork()
    if guardian:
        os.close(alive)
        _witness(path, state, guardian)
        return
    os.close(hold)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # is not inherited
    tasks = [task_of(pid) for pid in (os.getpid(), os.getppid())]
    state.guardians = {task.pid: task.start for task in tasks if task}
    _Guardian(path, state, [*owners, alive]).run(order["command"], order["env"])


class _Kept:
    """An engine that outlives its run, until nobody has used it for ``idle_s``.

    Whoever uses it holds a lock on ``use``, and sets the file's time when they begin and end.
    """

    def __init__(self, idle_s: float, use: Path) -> None:
        self._idle_s, self._use, self._since = idle_s, use, time.time()

    def is_forgotten(self) -> bool:
        try:
            with self._use.open("rb") as file:
                used = os.fstat(file.fileno()).st_mtime
                if time.time() - max(used, self._since) <= self._idle_s:
                    return False
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # somebody removed it: nobody can use the engine again
            return time.time() - self._since > self._idle_s
        return True


class _Guardian:
    """The engine's parent.

    Args:
        path: Where the notes go.
        state: The notes.
        watched: Descriptors that become readable when pytest or (the last) the witness ends.
    """

    def __init__(self, path: Path, state: State, watched: Sequence[int]) -> None:
        self._path, self._state, self._watched = path, state, watched
        self._deadline: float | None = None
        self._kept: _Kept | None = None

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the engine, serve pytest, end the engine."""
        self._state.save(self._path)
        try:
            self._state.leader = _launch(command, env)
        except OSError as error:
            _say("failed", error.errno)
        else:
            self._take_stock()
            _say("started", self._state.leader)
            self._serve()
            self._take_stock()
        _end(self._path, self._state)

    def _serve(self) -> None:
        """Obey until everything is to be killed: pytest or the witness ended, or the grace is over."""
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        for fd in (_LIFELINE, wake, *self._watched):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(self._patience_ms())}
            trim(_LOG)
            if wake in ready and signal.SIGTERM in os.read(wake, 4096) and self._kept:
                self._obey(_STOP)
            anybody = collect(self._ended)
            if ready.intersection(self._watched) or (_LIFELINE in ready and not self._obey(os.read(_LIFELINE, 4096))):
                if not self._kept or self._watched[-1] in ready:
                    return
                for fd in ready.intersection((_LIFELINE, *self._watched)):
                    poll.unregister(fd)
            if self._kept and self._deadline is None:
                if not anybody:
                    return
                if self._kept.is_forgotten():
                    self._obey(_STOP)
            if self._deadline is not None and (not anybody or time.monotonic() > self._deadline):
                return

    def _patience_ms(self) -> float:
        """How long to wait for an event; while the engine works, until the log is to be looked at again."""
        return _LOOK_MS if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1000 + 1

    def _obey(self, commands: bytes) -> bool:
        """Do what pytest says; False when it will never say anything again."""
        for command, *arguments in map(bytes.split, commands.splitlines()):
            self._take_stock()
            if command == b"stock":
                _say("stocked")
            elif command == b"keep":
                signal.signal(signal.SIGTERM, lambda *_: None)  # `vllmperf stop` says it with a signal
                self._kept = _Kept(float(arguments[0]), Path(os.fsdecode(b" ".join(arguments[1:]))))
                _say("kept")
            elif command == b"stop":
                self._deadline = time.monotonic() + float(arguments[0])
                leader = self._state.leader
                if leader in {task.pid for task in descendants(os.getpid())}:
                    assert leader is not None
                    os.kill(leader, signal.SIGTERM)
                    os.kill(leader, signal.SIGCONT)  # a suspended process hears nothing else
        return bool(commands)

    def _take_stock(self) -> None:
        self._state.take_stock(descendants(os.getpid()))
        self._state.save(self._path)

    def _ended(self, pid: int, code: int) -> None:
        if pid == self._state.leader:
            _say("exited", code)


def _witness(path: Path, state: State, guardian: int) -> None:
    """Wait for the guardian; when it was killed, end in its place those who thereby became our children."""
    if os.waitpid(guardian, 0)[1] == 0:
        return
    _say("lost")
    state = State.load(path) or state
    state.take_stock(descendants(os.getpid()))
    _end(path, state)


def _end(path: Path, state: State) -> None:
    """Kill whoever is left, and remove what they leave."""
    survivors = kill_descendants(lambda pid, code: _say("exited", code) if pid == state.leader else None)
    if not survivors:
        state.clean_up(path)
    _say("stopped", *survivors)


def _launch(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Start the engine in a process group of its own, its output going to our stderr.

    Raises:
        OSError: It cannot be run.
    """
    guardian = os.getpid()
    problem, report = os.pipe()  # closes when the engine is executed
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (*_IGNORED, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(_LOG, 1)
            if os.getppid() == guardian:
                os.execvpe(command[0], tuple(command), env)  # noqa: S606 - no shell is wanted
        except OSError as error:
            os.write(report, str(error.errno).encode())
        except ValueError:
            os.write(report, str(_UNUSABLE).encode())
        finally:
            os._exit(127)
    os.close(report)
    with os.fdopen(problem) as lines:
        errno = lines.read()
    if errno:
        raise OSError(int(errno), os.strerror(int(errno)))
    return pid


def _watch(pid: int) -> list[int]:
    """A descriptor that becomes readable when ``pid`` ends, even while its forked children hold the lifeline."""
    with contextlib.suppress(AttributeError, OSError):  # an old kernel or interpreter; the lifeline must do
        return [os.pidfd_open(pid)]
    return []


def _say(*words: object) -> None:
    """Answer pytest, if it is still there."""
    with contextlib.suppress(OSError):
        os.write(_ANSWERS, " ".join(map(str, words)).encode() + b"\n")


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process that Python has no function for."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
