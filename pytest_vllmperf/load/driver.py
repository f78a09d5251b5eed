"""The parent's side of the load processes: start them, follow them, take their results, leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import msgspec

import pytest_vllmperf.load
from pytest_vllmperf.domain.records import LoadRun, RequestRecord
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import LoadProcessError
from pytest_vllmperf.load.merge import merged
from pytest_vllmperf.load.plan import (
    CallOff,
    FrameReader,
    Order,
    Plan,
    Progress,
    Ready,
    Records,
    Start,
    deadline_s,
    decode_message,
    encode_frame,
)
from pytest_vllmperf.load.prompt_files import read_prompts
from pytest_vllmperf.load.stop_rules import StopRules
from pytest_vllmperf.load.target import proxy_for
from pytest_vllmperf.load.trace_files import read_trace

__all__ = ["LoadProgress", "run_load"]

_STDERR_TAIL = 4_000
_LOOK_S = 0.25
_GRACE_S = 10.0
"""What the load process gets beyond its own deadline before the parent ends it."""
_START_AFTER_NS = {False: 2_000_000, True: 50_000_000}
"""From the order to start until the clock starts: several processes must all have read it by then."""
_WORKER = (sys.executable, "-m", "pytest_vllmperf.load.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """A look at a load that runs. Good for showing, not for judging.

    Args:
        finished, failed, planned: Requests over, known to have failed, and planned.
        tokens_per_s: Token events since the last look; None at the first.
        ttft_s: Mean time to the first event of the requests that ended since the last look; None where none did.
    """

    finished: int
    failed: int
    planned: int
    tokens_per_s: float | None = None
    ttft_s: float | None = None


Follow = Callable[[LoadProgress], None]
CalledOff = Callable[[], str | None]


def run_load(
    workload: Workload,
    *,
    base_url: str,
    model: str,
    api_key: str | None,
    token_range: tuple[int, int],
    seed: int,
    requests: int | None = None,
    workers: int | None = None,
    progress: Follow | None = None,
    called_off: CalledOff | None = None,
    keep_alive: bool = True,
) -> LoadRun:
    """Drive ``workload`` from processes of its own, so that nothing this process does delays a stamp.

    Args:
        workload: Already resolved for the device (``Workload.on``).
        base_url: Of the engine, such as ``http://127.0.0.1:8000``.
        model: Name the engine serves the model under.
        api_key: Sent as a bearer token; it is never in an argument or in the environment.
        token_range: Prompt tokens are drawn from ``[low, high)``.
        seed: Decides prompts and arrivals.
        requests: Overrides the workload's count.
        workers: Overrides the workload's load processes; its ``auto`` is one here.
        progress: Called about twice a second, and once at the end.
        called_off: Asked four times a second why to end early, such as that the engine died; None goes on. What is
            not finished by then is a failed request that says so.
        keep_alive: Whether connections are used again; False for a server that closes them after each answer.

    Raises:
        WorkloadError: The workload's file cannot be read, or is not of its format.
        LoadProcessError: A process died, answered nonsense or overran its deadline; the message holds the
            end of what it wrote to stderr.
    """
    asked = workload if requests is None else replace(workload, requests=requests)
    wanted = workers or (asked.workers if isinstance(asked.workers, int) else 1)
    trace = read_trace(asked)
    plan = Plan(
        workload=asked,
        base_url=base_url,
        model=model,
        api_key=api_key,
        token_range=token_range,
        seed=seed,
        deadline_s=deadline_s(asked, trace),
        lines=read_prompts(asked),
        trace=trace,
        workers=min(wanted, asked.requests, asked.max_concurrency or asked.requests),
        proxy=proxy_for(base_url),
        keep_alive=keep_alive,
    )
    return _run_plan(plan, command=_WORKER, progress=progress, called_off=called_off)


def _run_plan(
    plan: Plan, *, command: tuple[str, ...], progress: Follow | None, called_off: CalledOff | None = None
) -> LoadRun:
    with contextlib.ExitStack() as stack:
        crew = [stack.enter_context(_Process(plan, place, command)) for place in range(plan.workers)]
        return _Follower(plan, crew, progress, called_off).run()


class _Process:
    """One load process; the end of ``with`` ends it, also on Ctrl-C."""

    def __init__(self, plan: Plan, place: int, command: tuple[str, ...]) -> None:
        # The package is found from its own directory, whatever the current one is and holds.
        home = Path(pytest_vllmperf.load.__file__).parents[2]
        self.plan = plan
        self.frames = FrameReader()
        self.ready: Ready | None = None
        self.last = Progress(finished=0)
        self.records: list[RequestRecord] = []
        self.run: LoadRun | None = None
        self._stderr: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.stdout = self._stdout.fileno()
        self.tell(msgspec.structs.replace(plan, worker=place))

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_exc: object) -> None:
        # The end of stdin already ends the process; the kill does not wait for it.
        self._stdin.close()
        self._stdout.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def tell(self, message: Plan | Order) -> None:
        """Send it; a process that died meanwhile says why on its stderr."""
        with contextlib.suppress(BrokenPipeError):
            _write_all(self._stdin.fileno(), encode_frame(message))

    def broken(self, what: str) -> LoadProcessError:
        """The error to raise, with the process's exit code and its last words."""
        code = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _STDERR_TAIL))
        said = self._stderr.read().decode("utf-8", "replace").strip()
        if self.plan.api_key:
            said = said.replace(self.plan.api_key, "***")
        tail = f"; its last words:\n{said}" if said else "; it wrote nothing to stderr"
        name = self.plan.workload.name
        return LoadProcessError(f"workload {name!r}: the load process {what} (exit code {code}){tail}")

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


@dataclass(slots=True)
class _Follower:
    """Reads frames of all processes until each has given its result."""

    plan: Plan
    crew: Sequence[_Process]
    progress: Follow | None
    called_off: CalledOff | None
    _rules: StopRules = field(init=False)
    _started: bool = False
    _looked_ns: int = 0
    _looked_at_reads: int = 0

    def __post_init__(self) -> None:
        self._rules = StopRules(self.plan.workload)

    def run(self) -> LoadRun:
        """Until the last result.

        Raises:
            LoadProcessError: It does not come.
        """
        limit = time.monotonic() + self.plan.deadline_s + _GRACE_S
        waiting = {process.stdout: process for process in self.crew}
        while waiting:
            left_s = max(0.0, limit - time.monotonic())
            readable, _, _ = select.select(
                list(waiting), [], [], left_s if self.called_off is None else min(left_s, _LOOK_S)
            )
            self._call_off_if_told()
            if not readable and time.monotonic() >= limit:
                late = next(iter(waiting.values()))
                late.kill()
                raise late.broken(f"gave no result within {self.plan.deadline_s:g} s")
            for fd in readable:
                self._read(waiting[fd])
                if waiting[fd].run is not None:
                    del waiting[fd]
        parts = [process.run for process in self.crew if process.run is not None]
        run = merged(parts, (record for process in self.crew for record in process.records))
        if self.progress is not None:
            planned = self.plan.workload.requests
            failed = sum(not record.succeeded for record in run.records)
            self.progress(LoadProgress(finished=len(run.records), failed=failed, planned=planned))
        return run

    def _call_off_if_told(self) -> None:
        why = None if self.called_off is None or not self._started else self.called_off()
        if why:
            self.called_off = None
            for process in self.crew:
                process.tell(CallOff(reason=why))

    def _read(self, process: _Process) -> None:
        data = os.read(process.stdout, 1 << 20)
        if not data:
            raise process.broken("ended without a result")
        try:
            messages = [decode_message(body) for body in process.frames.feed(data)]
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            process.kill()
            raise process.broken(f"answered nonsense ({error})") from error
        for message in messages:
            if isinstance(message, Progress):
                self._take(process, message)
            elif isinstance(message, Records):
                process.records += message.records
            elif isinstance(message, Ready):
                process.ready = message
                self._start_when_all_are_ready()
            else:
                process.run = message.run

    def _start_when_all_are_ready(self) -> None:
        told = [process.ready.schedule_hash for process in self.crew if process.ready is not None]
        if len(told) < len(self.crew):
            return
        if len(set(told)) > 1:
            raise LoadProcessError(f"workload {self.plan.workload.name!r}: the load processes disagree on the schedule")
        self._started = True
        at_ns = time.monotonic_ns() + _START_AFTER_NS[len(self.crew) > 1]
        for process in self.crew:
            process.tell(Start(at_ns=at_ns))

    def _take(self, process: _Process, progress: Progress) -> None:
        process.last = progress
        failed = sum(each.last.failed for each in self.crew)
        order = self._rules.look(failed=failed, samples=progress.samples)
        if order is not None:
            for each in self.crew:
                each.tell(order)
        if self.progress is not None and process is self.crew[0]:
            self.progress(self._look(failed, progress.ttft_s))

    def _look(self, failed: int, ttft_s: Sequence[float]) -> LoadProgress:
        now_ns = time.monotonic_ns()
        reads = sum(each.last.reads for each in self.crew)
        pace = (
            (reads - self._looked_at_reads) / max(1e-9, (now_ns - self._looked_ns) * 1e-9) if self._looked_ns else None
        )
        self._looked_ns, self._looked_at_reads = now_ns, reads
        return LoadProgress(
            finished=sum(each.last.finished for each in self.crew),
            failed=failed,
            planned=self.plan.workload.requests,
            tokens_per_s=pace,
            ttft_s=sum(ttft_s) / len(ttft_s) if ttft_s else None,
        )


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
