"""A load process: ``python -m pytest_vllmperf.load.worker``, plan and orders on stdin, results on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from io import BufferedReader
from typing import Any, BinaryIO, cast

from pytest_vllmperf.domain.prompts import Conversations
from pytest_vllmperf.domain.records import LoadRun, RequestRecord, latency_s
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import LoadProcessError
from pytest_vllmperf.load.compactor import Compactor
from pytest_vllmperf.load.dispatch import Dispatcher
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.health import HealthClock
from pytest_vllmperf.load.kernel_clock import KernelClock
from pytest_vllmperf.load.payload import encode_requests, word_range
from pytest_vllmperf.load.plan import (
    CallOff,
    Order,
    Plan,
    Progress,
    Ready,
    Records,
    Result,
    Start,
    Stop,
    decode_order,
    decode_plan,
    encode_frame,
    read_frame,
)
from pytest_vllmperf.load.questions import questions
from pytest_vllmperf.load.schedule import arrival_offsets_ns, schedule_hash, slot_openings_ns
from pytest_vllmperf.load.target import Target

__all__ = ["Drive", "main"]

_PROGRESS_PERIOD_S = 0.5
_RECORDS_AT_ONCE = 200
_FILES_BESIDE = 40
"""Open files that are no connections."""
_STDIN = cast("BinaryIO", cast("BufferedReader", sys.stdin.buffer).raw)
"""Unbuffered: what lies in a buffer, select does not see."""
_EXIT_ORPHANED = 70
_EXIT_OVERDUE = 71


def main() -> None:
    """Read the plan, drive it, answer. Ends by itself when its parent does or when it is overdue."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    body = read_frame(_STDIN)
    if body is None:
        raise SystemExit("no plan on stdin")
    plan = decode_plan(body)
    drive = Drive(plan)
    run = drive.run(_Parent(plan.deadline_s))
    batch: list[RequestRecord] = []
    for record in drive.records():
        batch.append(record)
        if len(batch) == _RECORDS_AT_ONCE:
            _send(encode_frame(Records(tuple(batch))))
            batch.clear()
    _send(encode_frame(Records(tuple(batch))))
    _send(encode_frame(Result(run)))


class Drive:
    """One process's share of a plan: prepared, run against the clock, read afterwards."""

    def __init__(self, plan: Plan) -> None:
        workload = self._workload = plan.workload
        self._plan = plan
        asked = tuple(
            questions(
                workload,
                token_range=word_range(workload, plan.token_range),
                seed=plan.seed,
                lines=plan.lines,
                trace=plan.trace,
            )
        )
        offsets_ns = arrival_offsets_ns(workload, count=workload.requests, seed=plan.seed, trace=plan.trace)
        self.schedule_hash = schedule_hash(offsets_ns, asked)
        ours = [i for i in range(len(asked)) if _owner(workload, i, plan.workers) == plan.worker]
        payloads = encode_requests(
            workload,
            [asked[i] for i in ours],
            base_url=plan.base_url,
            model=plan.model,
            api_key=plan.api_key,
            cache_salt=f"{plan.seed}" if plan.lines is not None else None,
        )
        self._exchanges = [
            Exchange(index=i, payload=payload, follows=asked[i].follows)
            for i, payload in zip(ours, payloads, strict=True)
        ]
        self._offsets_ns = None if offsets_ns is None else {i: offsets_ns[i] for i in ours}
        self._cap = _share(workload.max_concurrency, plan)
        until = workload.until
        self._compactor = Compactor(
            output_tokens={i: asked[i].output_tokens for i in ours},
            exact=workload.ignore_eos,
            sample=None if until is None else lambda r: latency_s(r, until.latency, open_loop=workload.open_loop),
        )

    def run(self, parent: _Parent | None = None) -> LoadRun:
        """Run against the clock; without a parent at once. The run comes without its records."""
        _raise_file_limit(self._cap)
        if self._plan.proxy is not None:
            import pytest_vllmperf.load.proxied  # noqa: F401 - loaded before the clock starts
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection would stop the clock's owner for milliseconds
        try:
            return _run_loop(self._run(parent))
        finally:
            gc.enable()

    def records(self) -> Iterator[RequestRecord]:
        """The records, in order of index; each answer's raw bytes are given up once it is read."""
        self._compactor.finish()
        for exchange in self._exchanges:
            if exchange.ended_ns:
                yield self._compactor.record(exchange)
                exchange.reads, exchange.reading = [], None

    async def _run(self, parent: _Parent | None) -> LoadRun:
        workload, compactor, loop = self._workload, self._compactor, asyncio.get_running_loop()
        target = Target.of(self._plan.base_url, proxy=self._plan.proxy)
        dispatcher = Dispatcher(
            target=target,
            exchanges=self._exchanges,
            offsets_ns=self._offsets_ns,
            max_concurrency=self._cap,
            openings_ns=self._openings_ns(),
            max_seconds=workload.max_seconds,
            timeout_s=workload.timeout_s,
            keep_alive=self._plan.keep_alive,
            on_end=compactor.add,
        )
        await dispatcher.connect_ahead()
        start_ns = None
        if parent is not None:
            start_ns = await loop.run_in_executor(None, parent.wait_for_start, Ready(self.schedule_hash))
            parent.listen(lambda order: loop.call_soon_threadsafe(_obey, dispatcher, order))
        reporter = loop.create_task(_report(dispatcher, compactor, target.clock, tell=parent is not None))
        clock = HealthClock(loop, target.clock.attention if target.clock is not None else None)
        started_ns, ended_ns = await dispatcher.run(start_ns)
        client = clock.read([e for e in self._exchanges if e.ended_ns], kernel_stamps=target.clock is not None)
        reporter.cancel()
        return LoadRun(
            records=(),
            started_ns=started_ns,
            ended_ns=ended_ns,
            client=client,
            schedule_hash=self.schedule_hash,
            stopped=dispatcher.stopped,
            unsent=dispatcher.unsent,
            abandoned=dispatcher.abandoned,
        )

    def _openings_ns(self) -> Sequence[int] | None:
        """The openings of this process's slots among those of all."""
        workload, plan = self._workload, self._plan
        if workload.open_loop or not workload.ramp_s or workload.max_concurrency is None:
            return None
        return slot_openings_ns(slots=workload.max_concurrency, ramp_s=workload.ramp_s)[plan.worker :: plan.workers]


def _owner(workload: Workload, index: int, workers: int) -> int:
    """Which process sends a request; a conversation stays with one."""
    source = workload.prompts
    return (index // source.turns if isinstance(source, Conversations) else index) % workers


def _share(cap: int | None, plan: Plan) -> int | None:
    return None if cap is None else max(1, len(range(plan.worker, cap, plan.workers)))


class _Parent:
    """The other end of stdin and stdout."""

    def __init__(self, deadline_s: float) -> None:
        self._limit = time.monotonic() + deadline_s

    def wait_for_start(self, ready: Ready) -> int:
        """Say that all is ready; the moment at which the clock starts. Ends the process when there is no parent."""
        _send(encode_frame(ready))
        self._wait()
        body = read_frame(_STDIN)
        order = decode_order(body) if body is not None else None
        if not isinstance(order, Start):
            os._exit(_EXIT_ORPHANED)
        return order.at_ns

    def listen(self, obey: Callable[[Order], object]) -> None:
        """Take orders in a thread of its own, and end the process when the parent ends or the time is over."""
        threading.Thread(target=self._listen, args=(obey,), daemon=True).start()

    def _listen(self, obey: Callable[[Order], object]) -> None:
        while True:
            self._wait()
            body = read_frame(_STDIN)
            if body is None:
                os._exit(_EXIT_ORPHANED)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over anyway
                obey(decode_order(body))

    def _wait(self) -> None:
        """Until there is something to read: the end of stdin, which the parent holds open while it cares, is too."""
        if not select.select([0], [], [], max(0.0, self._limit - time.monotonic()))[0]:
            os._exit(_EXIT_OVERDUE)


def _obey(dispatcher: Dispatcher, order: Order) -> None:
    if isinstance(order, Stop):
        dispatcher.stop(order.reason, abandon=order.abandon)
    elif isinstance(order, CallOff):
        dispatcher.call_off(order.reason)


async def _report(dispatcher: Dispatcher, compactor: Compactor, clock: KernelClock | None, *, tell: bool) -> None:
    """Twice a second: bound the memory, keep the clocks together, and tell how far it is."""
    while True:
        await asyncio.sleep(_PROGRESS_PERIOD_S)
        if clock is not None:
            clock.look()
        reads = compactor.reads(dispatcher.in_flight())
        ttft_s, compactor.ttft_s = compactor.ttft_s, []
        samples, compactor.samples = compactor.samples, []
        if tell:
            progress = Progress(
                finished=dispatcher.finished,
                failed=compactor.failed,
                reads=reads,
                ttft_s=tuple(ttft_s),
                samples=tuple(samples),
            )
            _send(encode_frame(progress))


def _run_loop(main: Coroutine[Any, Any, LoadRun]) -> LoadRun:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _send(frame: bytes) -> None:
    view = memoryview(frame)
    while view:
        view = view[os.write(1, view) :]


def _raise_file_limit(connections: int | None) -> None:
    """Every request in flight is a socket.

    Raises:
        LoadProcessError: The system allows fewer than are sure to be needed.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if connections is not None and allowed != resource.RLIM_INFINITY and connections + _FILES_BESIDE > allowed:
        raise LoadProcessError(
            f"max_concurrency={connections} needs as many open files, and this system allows {allowed} "
            f"(RLIMIT_NOFILE): raise it with ulimit -Hn {connections + _FILES_BESIDE}, or ask for less concurrency"
        )


if __name__ == "__main__":
    main()
