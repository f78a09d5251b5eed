"""The parent's side of the load process: start it, follow it, take its result, leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec

import pytest_vllmperf.load
from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import LoadProcessError
from pytest_vllmperf.load.plan import FrameReader, Plan, Progress, deadline_s, decode_message, encode_frame
from pytest_vllmperf.load.prompt_files import read_prompts

__all__ = ["run_load"]

_STDERR_TAIL = 4_000
_LOOK_S = 0.25
_GRACE_S = 10.0
"""What the load process gets beyond its own deadline before the parent ends it."""


def run_load(
    workload: Workload,
    *,
    base_url: str,
    model: str,
    api_key: str | None,
    token_range: tuple[int, int],
    seed: int,
    requests: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    called_off: Callable[[], str | None] | None = None,
) -> LoadRun:
    """Drive ``workload`` from a process of its own, so that nothing this process does delays a stamp.

    Args:
        workload: Already resolved for the device (``Workload.on``).
        base_url: Of the engine, such as ``http://127.0.0.1:8000``.
        model: Name the engine serves the model under.
        api_key: Sent as a bearer token; it is never in an argument or in the environment.
        token_range: Prompt tokens are drawn from ``[low, high)``.
        seed: Decides prompts and arrivals.
        requests: Overrides the workload's count.
        progress: Called about twice a second with requests finished and planned, and once at the end.
        called_off: Asked four times a second why to end early, such as that the engine died; None goes on. What is
            not finished by then is a failed request that says so.

    Raises:
        WorkloadError: The workload's file cannot be read, or is not of its format.
        LoadProcessError: The process died, answered nonsense or overran its deadline; the message holds the
            end of what it wrote to stderr.
    """
    asked = workload if requests is None else replace(workload, requests=requests)
    plan = Plan(
        workload=asked,
        base_url=base_url,
        model=model,
        api_key=api_key,
        token_range=token_range,
        seed=seed,
        deadline_s=deadline_s(asked),
        report_progress=progress is not None,
        lines=read_prompts(asked),
    )
    command = (sys.executable, "-m", "pytest_vllmperf.load.worker")
    run = _run_plan(plan, command=command, progress=progress, called_off=called_off)
    if progress is not None:
        progress(asked.requests, asked.requests)
    return run


def _run_plan(
    plan: Plan,
    *,
    command: tuple[str, ...],
    progress: Callable[[int, int], None] | None,
    called_off: Callable[[], str | None] | None = None,
) -> LoadRun:
    # The package is found from its own directory, whatever the current one is and holds.
    home = Path(pytest_vllmperf.load.__file__).parents[2]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once: its stderr says why
                _write_all(process.stdin.fileno(), encode_frame(plan))
            return _follow(process, process.stdout.fileno(), plan, stderr, progress, called_off)
        finally:
            # Also on Ctrl-C. The end of stdin already ends the process; the kill does not wait for it.
            process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()


def _follow(
    process: subprocess.Popen[bytes],
    stdout: int,
    plan: Plan,
    stderr: BinaryIO,
    progress: Callable[[int, int], None] | None,
    called_off: Callable[[], str | None] | None,
) -> LoadRun:
    """Read frames until the result.

    Raises:
        LoadProcessError: It does not come.
    """
    limit = time.monotonic() + plan.deadline_s + _GRACE_S
    frames = FrameReader()
    while True:
        left_s = max(0.0, limit - time.monotonic())
        readable, _, _ = select.select([stdout], [], [], left_s if called_off is None else min(left_s, _LOOK_S))
        if called_off is not None and (why := called_off()):
            _call_off(process, why)
            called_off = None
        if not readable and time.monotonic() < limit:
            continue
        if not readable:
            process.kill()
            raise _broken(process, plan, stderr, f"gave no result within {plan.deadline_s:g} s")
        data = os.read(stdout, 1 << 20)
        if not data:
            raise _broken(process, plan, stderr, "ended without a result")
        try:
            messages = [decode_message(body) for body in frames.feed(data)]
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            process.kill()
            raise _broken(process, plan, stderr, f"answered nonsense ({error})") from error
        for message in messages:
            if not isinstance(message, Progress):
                return message.run
            if progress is not None:
                progress(message.finished, message.planned)


def _call_off(process: subprocess.Popen[bytes], why: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has finished meanwhile
        _write_all(process.stdin.fileno(), f"{why}\n".encode())


def _broken(process: subprocess.Popen[bytes], plan: Plan, stderr: BinaryIO, what: str) -> LoadProcessError:
    code = process.wait()
    stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, stderr.tell() - _STDERR_TAIL))
    said = stderr.read().decode("utf-8", "replace").strip()
    if plan.api_key:
        said = said.replace(plan.api_key, "***")
    tail = f"; its last words:\n{said}" if said else "; it wrote nothing to stderr"
    return LoadProcessError(f"workload {plan.workload.name!r}: the load process {what} (exit code {code}){tail}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
