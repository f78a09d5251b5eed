"""The ground truth of tests and benchmarks: streams a known schedule, and keeps the moment of every send.

A process of its own, standard library only, started in a fraction of a second. It takes vLLM's command line (flags it
does not know are kept, as conditions of planted effects), so ``EngineConfig(command=(python, this file, …))`` works.

What it does to a request is settled when the request is admitted (``reference_model.py``)::

    TTFT = (ttft + prefill × uncached prompt tokens) × request factor      from admission to one of ``--slots``
    gap  = (tpot + per-sequence × others running) × request factor × jitter
    request factor = launch shift × AR(1) noise × service law

``--effect 'flag=enforce-eager:tpot*1.2'`` plants an effect of a flag, ``--effect 'flag=a&b=4:ttft*1.5,tpot*0.9'`` an
interaction; see ``reference_model.parse_effect``. The launch shift comes from the seed (``--noise-seed``, else
``REFERENCE_SEED``, else chance) and the number of the launch, counted in the file ``--launch-counter``.

``GET /reference/stamps`` gives each request's truth (monotonic ns; ``sent_ns`` is taken right before the write),
``/reference/configuration`` what is in force, ``/reference/reset`` forgets the stamps, ``/reference/shape/NAME``
changes the shape of answers, ``/reference/stall/SECONDS`` stops the whole process for that long.
It ends on SIGTERM, and by itself when its parent dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import resource
import secrets
import signal
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from fake_answers import SHAPES, Script, Step, count_tokens, steps_of
from reference_metrics import HISTOGRAMS, Histogram, prometheus_text
from reference_model import Noise, factors_of, flags_in, launch_shift, parse_effect

_MOST_KEPT = 50_000
_BLOCK = 16
_FOREVER = 3600.0
_MIB = 1 << 20
_now = time.monotonic_ns


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

    def __init__(self, engine: Engine, connection: Connection, script: Script, truth: Truth, prompt: object) -> None:
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


class Connection(asyncio.Protocol):
    """One client connection: HTTP/1.1 with keep-alive, one request at a time."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.stream: Stream | None = None
        self._engine = engine
        self._number = number
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._wait_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle:
            self._idle.cancel()
        if self.stream is not None:
            self.stream.lost()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self.stream is None:
            head, separator, _ = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            request, *lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            end = len(head) + 4 + int(headers.get("content-length", 0))
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[len(head) + 4 : end])
            del self._buffer[:end]
            method, path, _ = request.split(" ", 2)
            self._answer(method, path, headers, body)
            self._wait_idle()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def finish_stream(self, *, chunked: bool, shape: str) -> bool:
        """End an answer; whether the connection may go on."""
        if chunked:
            self.write(b"0\r\n\r\n")
        return shape not in ("close-delimited", "connection-close")

    def _wait_idle(self) -> None:
        if self._idle:
            self._idle.cancel()
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._engine.options.keep_alive_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.stream is None:
            self.close()
        else:
            self._wait_idle()

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} Reference\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.write(head.encode() + body)

    def _send_json(self, body: object, *, status: int = 200) -> None:
        self._send(status, json.dumps(body).encode())

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        engine = self._engine
        key = os.environ.get("VLLM_API_KEY")
        if key and path.startswith("/v1") and headers.get("authorization") != f"Bearer {key}":
            self._send_json({"error": "Unauthorized"}, status=401)
        elif path in ("/v1/completions", "/v1/chat/completions") and method == "POST":
            self._complete(json.loads(body), chat="chat" in path)
        elif path == "/health":
            self._send(200, b"", "text/plain")
        elif path == "/metrics":
            self._send(200, engine.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path == "/v1/models":
            card = {"id": engine.model, "object": "model", "owned_by": "vllm", "root": engine.options.model}
            self._send_json({"object": "list", "data": [{**card, "max_model_len": engine.options.max_model_len}]})
        elif path == "/version":
            self._send_json({"version": engine.options.version})
        elif path == "/tokenize" and method == "POST":
            asked = json.loads(body)
            count = count_tokens(asked.get("prompt", asked.get("messages")))
            self._send_json({"count": count, "max_model_len": engine.options.max_model_len, "tokens": [300] * count})
        elif path.startswith("/reference/"):
            self._control(path.removeprefix("/reference/"))
        else:
            self._send_json({"detail": "Not Found"}, status=404)

    def _control(self, what: str) -> None:
        engine = self._engine
        verb, _, argument = what.partition("/")
        if verb == "stamps":
            self._send_json([{**vars(truth), "opening": list(truth.opening)} for truth in engine.stamps])
            return
        if verb == "requests":
            self._send_json(list(engine.bodies))
            return
        if verb == "shape":
            engine.options.shape = argument
        elif verb == "stall":
            started_ns = _now()
            time.sleep(float(argument))
            self._send_json({"from_ns": started_ns, "to_ns": _now()})
            return
        elif verb == "reset":
            engine.bodies.clear()
        elif verb != "configuration":
            self._send_json({"detail": "Not Found"}, status=404)
            return
        if verb in ("shape", "reset"):
            engine.stamps = []
        self._send_json(engine.configuration)

    def _complete(self, request: dict[str, object], *, chat: bool) -> None:
        engine, options = self._engine, self._engine.options
        arrived_ns = _now()
        engine.requests += 1
        engine.bodies.append(request)
        if request.get("model") != engine.model:
            message = f"The model `{request.get('model')}` does not exist."
            self._send_json({"error": {"message": message, "type": "NotFoundError", "code": 404}}, status=404)
            return
        shape = options.shape if engine.requests % options.shape_every == 0 else "plain"
        if shape.startswith("http-"):
            error = {"message": f"scripted failure {shape[-3:]}", "code": int(shape[-3:])}
            self._send_json({"error": error}, status=int(shape[-3:]))
        elif shape == "html":
            self._send(200, b"<html><body>a proxy's page</body></html>", "text/html")
        elif shape == "not-http":
            self.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            self.close()
        else:
            self._stream(request, chat=chat, shape=shape, arrived_ns=arrived_ns)

    def _stream(self, request: dict[str, object], *, chat: bool, shape: str, arrived_ns: int) -> None:
        engine = self._engine
        script = _script(engine, request, chat=chat, shape=shape)
        prompt = request.get("messages" if chat else "prompt")
        opening = prompt[:8] if isinstance(prompt, list) and prompt and isinstance(prompt[0], int) else []
        truth = Truth(engine.requests, self._number, opening, arrived_ns, shape=shape)
        if len(engine.stamps) < _MOST_KEPT:
            engine.stamps.append(truth)
        framing = "transfer-encoding: chunked\r\n"
        if shape == "content-length":
            framing = f"content-length: {sum(len(frame.data) for frame in frames_of(script))}\r\n"
        elif shape == "close-delimited":
            framing = "connection: close\r\n"
        elif shape == "connection-close":
            framing += "connection: close\r\n"
        self.write(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n{framing}\r\n".encode())
        self.stream = Stream(engine, self, script, truth, prompt)
        engine.admit(self.stream)


def _script(engine: Engine, request: dict[str, object], *, chat: bool, shape: str) -> Script:
    stream_options = request.get("stream_options") or {}
    return Script(
        chat=chat,
        model=engine.model,
        prompt_tokens=count_tokens(request.get("messages") if chat else request.get("prompt")),
        output_tokens=int(request.get("max_completion_tokens") or request.get("max_tokens") or 16),
        texts=("é", "€", "🙂") if shape == "split-utf8" else (" tok",),
        finish_reason="length",
        usage_at_end=bool(stream_options.get("include_usage")),
        usage_on_each=bool(stream_options.get("continuous_usage_stats")),
        ttft_s=1.0,
        itl_s=1.0,
        tokens_per_event=engine.options.tokens_per_event,
        shape=shape,
    )


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


def options_of(argv: list[str]) -> argparse.Namespace:
    """The command line; flags not named here are vLLM's, and may be conditions of effects."""
    parser = argparse.ArgumentParser(prog="reference_server.py", allow_abbrev=False, description=__doc__)
    add = parser.add_argument
    add("--model", default="reference")
    add("--served-model-name")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--max-model-len", type=int, default=4096)
    add("--max-num-seqs", type=int, default=0, help="as --slots, where that is not given")
    add("--ttft-ms", type=float, default=20.0)
    add("--tpot-ms", type=float, default=5.0)
    add("--prefill-us-per-token", type=float, default=0.0)
    add("--per-sequence-us", type=float, default=0.0, help="added to each gap for every other request running")
    add("--api-delay-ms", type=float, default=0.0, help="between a token being ready and its write (API server)")
    add("--slots", type=int, default=0, help="requests served at once; others wait in order. 0 is no bound")
    add("--service-law", choices=("fixed", "exponential"), default="fixed")
    add("--tokens-per-event", type=int, default=1)
    add("--shape", choices=SHAPES, default="plain")
    add("--shape-every", type=int, default=1, metavar="N", help="only each Nth answer has the shape")
    add("--effect", action="append", default=[], metavar="flag=NAME[=VALUE][&…]:QUANTITY*FACTOR[,…]")
    add("--ar1-phi", type=float, default=0.0)
    add("--ar1-sd", type=float, default=0.0, help="relative, of a request's times")
    add("--jitter-sd", type=float, default=0.0, help="relative, of each gap")
    add("--launch-sd", type=float, default=0.0, help="relative, of all times of a launch")
    add("--launch-counter", metavar="FILE", help="counts launches, so that each draws another shift")
    add("--noise-seed", help="else the environment's REFERENCE_SEED, else chance")
    add("--memory-mib", type=float, default=0.0, help="host memory held")
    add("--keep-alive-s", type=float, default=5.0)
    add("--start-delay-s", type=float, default=0.0)
    add("--version", default="0.0.0+reference")
    add("--legacy-metrics", action="store_true", help="older names of vLLM's metrics")
    add("--tls-cert")
    add("--tls-key")
    return parser.parse_known_args(argv)[0]


async def serve(options: argparse.Namespace, flags: dict[str, str]) -> None:
    """Until SIGTERM, or until the parent is gone."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    parent = os.getppid()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"INFO reference server (pid {os.getpid()}) starting with {options.model}", file=sys.stderr, flush=True)
    engine = Engine(options, flags, Ticker(loop))
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stop.wait(), options.start_delay_s)
    if "fail-start" in engine.effects:
        print("RuntimeError: Engine core initialization failed (planted).", file=sys.stderr, flush=True)
        os._exit(1)
    tls = None
    if options.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.tls_cert, options.tls_key)
    connections = iter(range(1, 1 << 60))
    try:
        server = await loop.create_server(
            lambda: Connection(engine, next(connections)), options.host, options.port, ssl=tls, backlog=2048
        )
    except OSError as error:
        print(f"ERROR: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    print(f"INFO Uvicorn running on http://{options.host}:{options.port}", file=sys.stderr, flush=True)
    while not stop.is_set() and os.getppid() == parent:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.2)
    server.close()
    os._exit(0)  # answers under way are dropped, as vLLM does on SIGTERM


if __name__ == "__main__":
    asyncio.run(serve(options_of(sys.argv[1:]), flags_in(sys.argv[1:])))
