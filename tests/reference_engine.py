"""What ``reference_server.py`` serves: its token clock, its noise, its slots, its counters."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import heapq
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from fake_answers import Script, Step, steps_of
from reference_metrics import HISTOGRAMS, Histogram, prometheus_text
from reference_model import Noise, factors_of, launch_shift, parse_effect

_BLOCK = 16
_FOREVER = 3600.0
_MIB = 1 << 20
_now = time.monotonic_ns


class Sink(Protocol):
    """The connection that an answer is written to."""

    stream: Stream | None

    def write(self, data: bytes) -> None:
        """Send it."""

    def close(self) -> None:
        """Drop the connection."""

    def finish_stream(self, *, chunked: bool, shape: str) -> bool:
        """End an answer; whether the connection may go on."""


class Ticker:
    """Calls back at moments of the monotonic clock, to the microsecond: event loops round to milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._count = 0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)
        self._set_ns = 0
        loop.add_reader(self._fd, self._expired)

    def at(self, at_ns: int, call: Callable[[int], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (at_ns, self._count, call))
        self._arm()

    def _arm(self) -> None:
        first = self._due[0][0]
        if first == self._set_ns:
            return
        self._set_ns = first
        seconds, nanoseconds = divmod(max(first, 1), 1_000_000_000)
        spec = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        self._libc.timerfd_settime(self._fd, 1, ctypes.byref(spec), None)

    def _expired(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._set_ns = 0
        while self._due and self._due[0][0] <= _now():
            at_ns, _, call = heapq.heappop(self._due)
            call(at_ns)
        if self._due:
            self._arm()


@lru_cache(maxsize=256)
def frames_of(script: Script) -> tuple[Step, ...]:
    """The writes of an answer whose clock is the token: ``at_s`` 1 is the first token, 2 the second, 0 the arrival."""
    return tuple(steps_of(replace(script, ttft_s=1.0, itl_s=1.0)))


@dataclass
class Truth:
    """What really happened to one request. ``engine_ns`` is when a token was ready, ``sent_ns`` when it was written."""

    number: int
    connection: int
    opening: list[int]
    arrived_ns: int
    admitted_ns: int = 0
    due_ns: list[int] = field(default_factory=list)
    sent_ns: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    shape: str = "plain"
    finished: bool = False


class Engine:
    """The server's state: what is in force, who is served, who waits, what was counted."""

    def __init__(self, options: argparse.Namespace, flags: dict[str, str], ticker: Ticker) -> None:
        self.options = options
        self.ticker = ticker
        self.model = options.served_model_name or options.model
        effects = [effect for text in options.effect for effect in parse_effect(text)]
        self.effects = factors_of(effects, flags)
        seed = options.noise_seed or os.environ.get("REFERENCE_SEED") or secrets.token_hex(8)
        launch = _count_launch(options.launch_counter)
        self.launch_factor = launch_shift(sd=options.launch_sd, seed=seed, launch=launch)
        self.noise = Noise(
            seed=f"{seed}:{launch}",
            phi=options.ar1_phi,
            sd=options.ar1_sd,
            jitter=options.jitter_sd,
            exponential=options.service_law == "exponential",
        )
        self.ttft_s = self.changed("ttft", options.ttft_ms / 1000)
        self.tpot_s = self.changed("tpot", options.tpot_ms / 1000)
        self.api_delay_ns = round(self.changed("api-delay", options.api_delay_ms) * 1e6)
        self.slots = round(self.changed("slots", options.slots or options.max_num_seqs or 1_000_000))
        self.ballast = bytearray(round(self.changed("memory", options.memory_mib) * _MIB)) or None
        if self.ballast:
            self.ballast[::4096] = b"x" * len(self.ballast[::4096])  # touched, so that it counts
        self.configuration = {
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "slots": self.slots,
            "launch": launch,
            "launch_factor": self.launch_factor,
            "seed": seed,
            "effects": self.effects,
            "flags": flags,
        }
        self.waiting: deque[Stream] = deque()
        self.running = 0
        self.requests = 0
        self.stamps: list[Truth] = []
        self.bodies: deque[dict[str, object]] = deque(maxlen=1000)
        self.blocks: set[int] = set()
        self.counters = dict.fromkeys(
            (
                *("vllm:prompt_tokens", "vllm:generation_tokens", "vllm:num_preemptions"),
                *("vllm:prefix_cache_queries", "vllm:prefix_cache_hits"),
            ),
            0,
        )
        self.histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAMS.items()}

    def changed(self, quantity: str, base: float) -> float:
        factor, addend = self.effects.get(quantity, (1.0, 0.0))
        return base * factor + addend

    def found_in_cache(self, prompt: object) -> int:
        """Tokens of a prompt of ids that an earlier one opened with, in whole blocks; its own blocks are kept."""
        if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], int):
            return 0
        self.counters["vllm:prefix_cache_queries"] += len(prompt)
        key, found, unbroken = 0, 0, True
        for end in range(_BLOCK, len(prompt) + 1, _BLOCK):
            key = hash((key, tuple(prompt[end - _BLOCK : end])))
            unbroken = unbroken and key in self.blocks and end < len(prompt)
            found = end if unbroken else found
            self.blocks.add(key)
        self.counters["vllm:prefix_cache_hits"] += found
        return found

    def admit(self, stream: Stream) -> None:
        """Serve at once, or when one of the slots is free."""
        if self.running < self.slots:
            self.running += 1
            stream.begin(_now())
        else:
            self.waiting.append(stream)

    def leave(self, at_ns: int) -> None:
        """A slot is free: the next one moves up."""
        self.running -= 1
        while self.waiting and self.running < self.slots:
            stream = self.waiting.popleft()
            if not stream.gone:
                self.running += 1
                stream.begin(at_ns)

    def observe(self, name: str, ns: int) -> None:
        self.histograms[f"vllm:{name}_seconds"].observe(ns * 1e-9)

    def metrics(self) -> str:
        return prometheus_text(
            model=self.model,
            gauges={
                "vllm:num_requests_running": self.running,
                "vllm:num_requests_waiting": len(self.waiting),
                "vllm:kv_cache_usage_perc": min(1.0, self.running / 64),
            },
            counters=self.counters,
            histograms=self.histograms,
            legacy=self.options.legacy_metrics,
        )


class Stream:
    """One answer under way: its token times, and the write that comes next."""

    def __init__(self, engine: Engine, connection: Sink, script: Script, truth: Truth, prompt: object) -> None:
        self.gone = False
        self._engine = engine
        self._connection = connection
        self._script = script
        self._truth = truth
        self._frames = frames_of(script)
        self._place = 0
        self._times: list[int] = []
        self._uncached = script.prompt_tokens - engine.found_in_cache(prompt)
        self._factor = engine.launch_factor * engine.noise.request_factor()
        self._chunked = script.shape not in ("content-length", "close-delimited")
        self._previous_ns = 0

    def begin(self, at_ns: int) -> None:
        """Admitted at ``at_ns``: from here every time is settled."""
        engine, script, options = self._engine, self._script, self._engine.options
        self._truth.admitted_ns = at_ns
        engine.observe("request_queue_time", at_ns - self._truth.arrived_ns)
        first_s = (engine.ttft_s + options.prefill_us_per_token * 1e-6 * self._uncached) * self._factor
        gap_s = (engine.tpot_s + options.per_sequence_us * 1e-6 * (engine.running - 1)) * self._factor
        at = at_ns + first_s * 1e9
        times = [round(at)]
        for _ in range(script.output_tokens):
            at += gap_s * engine.noise.gap_factor() * 1e9
            times.append(round(at))
        self._times = times
        self._next()

    def _time(self, position: float) -> int:
        """The moment of a position of the token clock; positions beyond the last token go on at the last pace."""
        truth, times = self._truth, self._times
        if position >= _FOREVER:
            return _now() + round(_FOREVER * 1e9)
        if position < 1.0:
            return truth.admitted_ns + round(position * (times[0] - truth.admitted_ns))
        place = min(int(position) - 1, len(times) - 1)
        rest = position - 1 - place
        if not rest:
            return times[place]
        pace = times[place + 1] - times[place] if place + 1 < len(times) else times[-1] - times[max(0, len(times) - 2)]
        return times[place] + round(rest * pace)

    def _next(self) -> None:
        """Wait for the next write, or end."""
        if self._place == len(self._frames):
            self._end(keep=self._connection.finish_stream(chunked=self._chunked, shape=self._script.shape))
            return
        due_ns = self._time(self._frames[self._place].at_s)
        self._engine.ticker.at(due_ns + self._engine.api_delay_ns, self._write)

    def _write(self, at_ns: int) -> None:
        if self.gone:
            return
        now = _now()
        while self._place < len(self._frames):
            frame = self._frames[self._place]
            due_ns = self._time(frame.at_s)
            if due_ns + self._engine.api_delay_ns > at_ns:
                break
            self._place += 1
            if frame.breaks:
                self._end(keep=False)
                return
            if frame.carries:
                self._count(frame, due_ns)
                now = _now()
                self._truth.sent_ns.append(now)
            data = b"%x\r\n%b\r\n" % (len(frame.data), frame.data) if self._chunked and frame.data else frame.data
            self._connection.write(data)
        self._next()

    def _count(self, frame: Step, due_ns: int) -> None:
        engine, truth = self._engine, self._truth
        truth.due_ns.append(due_ns)
        truth.tokens.append(frame.tokens)
        engine.counters["vllm:generation_tokens"] += frame.tokens
        if self._previous_ns:
            engine.observe("inter_token_latency", due_ns - self._previous_ns)
        else:
            engine.counters["vllm:prompt_tokens"] += self._script.prompt_tokens
            engine.observe("time_to_first_token", due_ns - truth.arrived_ns)
            engine.observe("request_prefill_time", due_ns - truth.admitted_ns)
        self._previous_ns = due_ns

    def _end(self, *, keep: bool) -> None:
        if self.gone:
            return
        self.gone = True
        engine, truth = self._engine, self._truth
        truth.finished = True
        if truth.due_ns:
            decode_ns = truth.due_ns[-1] - truth.due_ns[0]
            engine.observe("request_decode_time", decode_ns)
            engine.observe("request_inference_time", truth.due_ns[-1] - truth.admitted_ns)
            engine.observe("e2e_request_latency", truth.due_ns[-1] - truth.arrived_ns)
            rest = sum(truth.tokens) - truth.tokens[0]
            engine.observe("request_time_per_output_token", decode_ns // rest if rest else 0)
        self._connection.stream = None
        if not keep:
            self._connection.close()
        engine.leave(_now())

    def lost(self) -> None:
        """The client left."""
        if self.gone:
            return
        self.gone = True
        if self._times:
            self._engine.leave(_now())


def _count_launch(path: str | None) -> int:
    """How many launches the file counted before this one."""
    if path is None:
        return 0
    with Path(path).open("a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = int(file.read() or 0)
        file.truncate(0)
        file.write(str(before + 1))
    return before
