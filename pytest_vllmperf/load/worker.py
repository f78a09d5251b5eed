"""The load process: ``python -m pytest_vllmperf.load.worker``, plan on stdin, results on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from pytest_vllmperf.domain.records import LoadRun, RequestRecord
from pytest_vllmperf.load.dispatch import Dispatcher, Target
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.health import HealthClock
from pytest_vllmperf.load.payload import encode_requests, word_range
from pytest_vllmperf.load.plan import Plan, Progress, Result, decode_plan, encode_frame, read_frame
from pytest_vllmperf.load.questions import questions
from pytest_vllmperf.load.schedule import arrival_offsets_ns
from pytest_vllmperf.load.stream import record_of

__all__ = ["Compactor", "drive", "main"]

_PROGRESS_PERIOD_S = 0.5
_MOST_STASHED_READS = 500_000
"""About 200 MB of unread answers. Beyond that, finished ones are read while the load still runs."""
_EXIT_ORPHANED = 70
_EXIT_OVERDUE = 71


def main() -> None:
    """Read the plan, drive it, answer. Ends by itself when its parent does or when it is overdue."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        body = read_frame(stdin)
    if body is None:
        raise SystemExit("no plan on stdin")
    plan = decode_plan(body)
    calls = _CallOff(plan.deadline_s)
    threading.Thread(target=calls.follow_parent, daemon=True).start()
    _raise_file_limit()
    run = drive(plan, calls)
    _send(encode_frame(Result(run)))


def drive(plan: Plan, calls: _CallOff | None = None) -> LoadRun:
    """Prepare, run the clock, and read the answers afterwards. ``calls`` may end it early."""
    workload = plan.workload
    asked = tuple(
        questions(workload, token_range=word_range(workload, plan.token_range), seed=plan.seed, lines=plan.lines)
    )
    payloads = encode_requests(
        workload,
        asked,
        base_url=plan.base_url,
        model=plan.model,
        api_key=plan.api_key,
        cache_salt=f"{plan.seed}" if plan.lines is not None else None,
    )
    exchanges = [
        Exchange(index=i, payload=payload, follows=question.follows)
        for i, (payload, question) in enumerate(zip(payloads, asked, strict=True))
    ]
    compactor = Compactor(output_tokens=[question.output_tokens for question in asked])
    offsets_ns = arrival_offsets_ns(workload, count=workload.requests, seed=plan.seed)

    async def run() -> LoadRun:
        dispatcher = Dispatcher(
            target=Target.of(plan.base_url),
            exchanges=exchanges,
            offsets_ns=offsets_ns,
            max_concurrency=workload.max_concurrency,
            timeout_s=workload.timeout_s,
            on_end=compactor.add,
        )
        loop = asyncio.get_running_loop()
        reporter = loop.create_task(_report(dispatcher, len(exchanges))) if plan.report_progress else None
        clock = HealthClock()
        if calls is not None:
            calls.listen(lambda why: loop.call_soon_threadsafe(dispatcher.call_off, why))
        started_ns, ended_ns = await dispatcher.run()
        client = clock.read(exchanges, loop=type(loop).__module__.partition(".")[0])
        if reporter is not None:
            reporter.cancel()
        return LoadRun(records=(), started_ns=started_ns, ended_ns=ended_ns, client=client)

    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would stop the clock's owner for milliseconds
    try:
        bare = _run_loop(run())
    finally:
        gc.enable()
    return replace(bare, records=tuple(compactor.record(exchange) for exchange in exchanges))


class Compactor:
    """Reads answers after the run; earlier only when their raw bytes would fill the memory."""

    def __init__(self, *, output_tokens: Sequence[int], most_stashed_reads: int = _MOST_STASHED_READS) -> None:
        self._output_tokens = output_tokens
        self._most_stashed_reads = most_stashed_reads
        self._stashed_reads = 0
        self._waiting: deque[Exchange] = deque()
        self._records: dict[int, RequestRecord] = {}
        self._scheduled = False

    def add(self, exchange: Exchange) -> None:
        """Take a finished exchange."""
        self._waiting.append(exchange)
        self._stashed_reads += len(exchange.reads)
        if self._stashed_reads > self._most_stashed_reads and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._compact_one)

    def record(self, exchange: Exchange) -> RequestRecord:
        """The record of a finished exchange."""
        done = self._records.pop(exchange.index, None)
        return done if done is not None else record_of(exchange, output_tokens=self._output_tokens[exchange.index])

    def _compact_one(self) -> None:
        """Read one answer, then let the loop attend to its sockets before the next."""
        exchange = self._waiting.popleft()
        self._stashed_reads -= len(exchange.reads)
        self._records[exchange.index] = self.record(exchange)
        exchange.reads = []
        self._scheduled = self._stashed_reads > self._most_stashed_reads
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._compact_one)


async def _report(dispatcher: Dispatcher, planned: int) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_PERIOD_S)
        _send(encode_frame(Progress(dispatcher.finished, planned)))


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


class _CallOff:
    """What the parent says after the plan: a line that calls the run off, or the end, which ends this process."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._why: str | None = None
        self._listener: Callable[[str], object] | None = None

    def listen(self, listener: Callable[[str], object]) -> None:
        """Call ``listener`` with the reason, at once when the run was called off already."""
        with self._lock:
            self._listener = listener
        self._pass_on()

    def follow_parent(self) -> None:
        """Wait for the end of stdin, which the parent holds open for as long as it lives and cares."""
        while True:
            readable, _, _ = select.select([0], [], [], self._deadline_s)
            said = os.read(0, 4096) if readable else b""
            if not said:
                os._exit(_EXIT_ORPHANED if readable else _EXIT_OVERDUE)
            self._why = said.decode("utf-8", "replace").strip()
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            if self._why is not None and self._listener is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over anyway
                    self._listener(self._why)
                self._listener = None


def _raise_file_limit() -> None:
    """Every request in flight is a socket."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
