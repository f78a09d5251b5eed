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
import json
import os
import resource
import signal
import ssl
import sys
import time

from fake_answers import SHAPES, Script, count_tokens
from reference_engine import Engine, Stream, Ticker, Truth, frames_of
from reference_model import flags_in

_MOST_KEPT = 50_000
_OWN_SHAPES = ("reset", "redirect", "http-400", "http-503")
_now = time.monotonic_ns


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
            engine.requests = 0
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
        elif shape == "redirect":
            self._send(302, b"", f"text/html\r\nlocation: {options.redirect_to}")
        elif shape == "reset":
            self.close()
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
    add("--shape", choices=(*SHAPES, *_OWN_SHAPES), default="plain")
    add("--shape-every", type=int, default=1, metavar="N", help="only each Nth answer has the shape")
    add("--redirect-to", default="http://127.0.0.1:9/", help="where the shape redirect points")
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
