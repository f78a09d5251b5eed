"""A server that speaks vLLM's OpenAI API on a scripted token schedule. Standard library only.

Run as a process of its own with vLLM's flags; ``--fake-*`` flags script its behaviour. It answers
``/fake/stamps`` with the moments (monotonic ns) at which it sent each token event, which is the truth
a client's stamps are compared with, and ``/fake/requests`` with the bodies it was sent. ``/fake/shape/NAME``
changes the shape of its answers and forgets both.
It stops on SIGTERM, and by itself when its parent dies.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from fake_answers import SHAPES, Script, count_tokens, steps_of, usage

_MOST_KEPT = 10_000
_BLOCK = 16
"""Tokens in one block of the prefix cache."""


@dataclass
class Engine:
    """The server's state and counters."""

    options: argparse.Namespace
    generation_tokens: int = 0
    prompt_tokens: int = 0
    running: int = 0
    finished: int = 0
    cache: set[tuple[int, ...]] = field(default_factory=set)
    cache_hits: int = 0
    cache_queries: int = 0
    requests: int = 0
    asleep: bool = False
    told: list[str] = field(default_factory=list)
    connections: int = 0
    stamps: list[dict[str, object]] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)

    @property
    def model(self) -> str:
        return self.options.served_model_name or self.options.model

    @property
    def dies(self) -> bool:
        """Whether the request just taken is the one the engine dies of."""
        return 0 < self.options.fake_exit_after_requests < self.requests

    def die(self) -> None:
        print("ERROR EngineCore failed (scripted).", file=sys.stderr, flush=True)
        os._exit(self.options.fake_exit_code)

    def look_up(self, prompt: object) -> None:
        """Count what a prefix cache would serve of a prompt of token ids, and keep the prompt's whole blocks."""
        if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], int):
            return
        opening = self.options.fake_prefix_cache_accident
        ends = range(_BLOCK, len(prompt) + 1, _BLOCK)
        found = max((end for end in ends if end < len(prompt) and tuple(prompt[:end]) in self.cache), default=0)
        self.cache_queries += len(prompt)
        self.cache_hits += max(found, opening)
        self.cache.update(tuple(prompt[:end]) for end in ends)

    def metrics(self) -> str:
        """Prometheus text in vLLM's names."""
        label = f'{{engine="0",model_name="{self.model}"}}'
        rows = (
            ("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", self.running),
            ("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", self.running / 64),
            ("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.", self.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", "Number of generation tokens.", self.generation_tokens),
            ("vllm:prefix_cache_queries_total", "counter", "Prefix cache queries.", self.cache_queries),
            ("vllm:prefix_cache_hits_total", "counter", "Prefix cache hits.", self.cache_hits),
            ("vllm:request_success_total", "counter", "Count of successfully processed requests.", self.finished),
            ("vllm:num_preemptions_total", "counter", "Cumulative preemptions.", self.options.fake_preemptions),
        )
        lines = [f'vllm:cache_config_info{{block_size="{_BLOCK}",engine="0"}} 1.0']
        for name, kind, text, value in rows:
            family = name.removesuffix("_total") if kind == "counter" else name
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{label} {float(value)}"]
            if kind == "counter":
                lines += [f"# HELP {family}_created {text}", f"# TYPE {family}_created gauge"]
                lines += [f"{family}_created{label} 1.7e+09"]
        return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------- HTTP


@dataclass
class Connection:
    """One client connection: reads requests, writes answers."""

    engine: Engine
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def serve(self) -> None:
        """Answer until the client leaves, is idle too long, or a shape breaks the connection."""
        while True:
            try:
                head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), self.engine.options.fake_keep_alive_s)
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError):
                return
            request, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = request.split(" ", 2)
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            if not await self.answer(method, path, headers, body):
                return

    async def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bool:
        """Answer one request; False when the connection must end."""
        engine = self.engine
        key = os.environ.get("VLLM_API_KEY")
        if key and path.startswith("/v1") and headers.get("authorization") != f"Bearer {key}":
            return self.send_json({"error": "Unauthorized"}, status=401)
        if path in ("/v1/completions", "/v1/chat/completions") and method == "POST":
            return await self.complete(json.loads(body), headers, chat="chat" in path)
        simple: dict[str, object] = {
            "/v1/models": {"object": "list", "data": [_model_card(engine)]},
            "/version": {"version": engine.options.fake_version},
            "/fake/stamps": engine.stamps,
            "/fake/requests": engine.bodies,
        }
        if engine.options.fake_server_info:  # vLLM has it in development mode only
            simple["/server_info?config_format=json"] = json.loads(engine.options.fake_server_info)
        if path in simple:
            return self.send_json(simple[path])
        if path.startswith("/fake/shape/"):
            engine.options.fake_shape = path.rpartition("/")[2]
            engine.stamps.clear()
            engine.bodies.clear()
            return self.send_json(engine.options.fake_shape)
        if path.startswith(("/sleep", "/wake_up", "/collective_rpc")) and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            engine.told.append(f"{path} {body.decode()}".strip())
            engine.asleep = path.startswith("/sleep") or path == "/wake_up?tags=weights" or "rpc" in path
            return self.send_json({})
        if path == "/is_sleeping":
            return self.send_json({"is_sleeping": engine.asleep})
        if path == "/fake/told":
            return self.send_json(engine.told)
        if path == "/health" and engine.options.fake_unhealthy_answers > 0:
            engine.options.fake_unhealthy_answers -= 1
            return self.send(503, b"", "text/plain")
        if path == "/health":
            return self.send(200, b"", "text/plain")
        if path == "/metrics":
            return self.send(200, engine.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        if path == "/tokenize" and method == "POST":
            return self.send_json(_tokenized(json.loads(body)))
        return self.send_json({"detail": "Not Found"}, status=404)

    def send_json(self, body: object, *, status: int = 200) -> bool:
        return self.send(status, json.dumps(body).encode(), "application/json")

    def send(self, status: int, body: bytes, kind: str, *, keep: bool = True) -> bool:
        close = "" if keep else "connection: close\r\n"
        head = f"HTTP/1.1 {status} Fake\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{close}\r\n"
        self.writer.write(head.encode() + body)
        return keep

    async def complete(self, request: dict[str, object], headers: dict[str, str], *, chat: bool) -> bool:
        """One completion, streamed or whole."""
        engine, options = self.engine, self.engine.options
        arrived_ns = time.monotonic_ns()
        engine.requests += 1
        if len(engine.bodies) < _MOST_KEPT:
            engine.bodies.append(request)
        if request.get("model") != engine.model:
            message = f"The model `{request.get('model')}` does not exist."
            error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
            return self.send_json({"error": error}, status=404)
        if engine.asleep:
            return self.send_json({"error": {"message": "the engine sleeps", "code": 500}}, status=500)
        if 0 < options.fake_hang_after_requests < engine.requests:
            await asyncio.sleep(3600)  # as a server whose engine core is suspended: connected, healthy, silent
        shape = headers.get("x-fake-shape", options.fake_shape)
        if engine.requests <= options.fake_shape_after:
            shape = "plain"
        if shape in ("http-500", "http-429"):
            status = int(shape[-3:])
            if options.fake_leak:
                return self.send_json({"error": {"message": _secrets(), "code": status}}, status=status)
            return self.send_json({"error": {"message": f"scripted failure {status}", "code": status}}, status=status)
        if shape == "html":
            return self.send(200, b"<html><body>a proxy's page</body></html>", "text/html")
        if shape == "not-http":
            self.writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            return False
        script = _script(engine, request, chat=chat, shape=shape)
        engine.prompt_tokens += script.prompt_tokens
        if options.fake_prefix_cache:
            engine.look_up(request.get("prompt"))
        engine.running += 1
        try:
            if not request.get("stream"):
                return await self.send_whole(script)
            return await self.send_stream(script, arrived_ns)
        finally:
            engine.running -= 1
            engine.finished += 1

    async def send_whole(self, script: Script) -> bool:
        """The answer in one piece."""
        await asyncio.sleep(script.ttft_s + script.itl_s * max(0, script.output_tokens - 1))
        if self.engine.dies:
            self.engine.die()
        self.engine.generation_tokens += script.output_tokens
        texts = script.texts
        text = "".join(texts[i % len(texts)] for i in range(script.output_tokens))
        choice: dict[str, object] = {"index": 0, "finish_reason": script.finish_reason, "logprobs": None}
        choice.update({"message": {"role": "assistant", "content": text}} if script.chat else {"text": text})
        kind = "chat.completion" if script.chat else "text_completion"
        used = usage(script, script.output_tokens)
        return self.send_json({"id": "fake", "object": kind, "model": script.model, "choices": [choice], "usage": used})

    async def send_stream(self, script: Script, arrived_ns: int) -> bool:
        """The answer event by event, each at its moment."""
        engine, writer = self.engine, self.writer
        steps = steps_of(script)
        stamp = {"connection": self.number, "arrived_ns": arrived_ns, "sent_ns": [], "tokens": []}
        if len(engine.stamps) < _MOST_KEPT:
            engine.stamps.append(stamp)
        framing = {
            "content-length": f"content-length: {sum(len(step.data) for step in steps)}\r\n",
            "close-delimited": "connection: close\r\n",
            "connection-close": "transfer-encoding: chunked\r\nconnection: close\r\n",
        }.get(script.shape, "transfer-encoding: chunked\r\n")
        chunked = "chunked" in framing
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n{framing}\r\n".encode())
        dies = engine.dies
        for place, step in enumerate(steps):
            await _until(arrived_ns + round(step.at_s * 1e9))
            if dies and place == len(steps) // 2:
                engine.die()
            if step.breaks or writer.is_closing():
                return False
            engine.generation_tokens += step.tokens
            data = b"%x\r\n%b\r\n" % (len(step.data), step.data) if chunked and step.data else step.data
            if step.carries:
                stamp["sent_ns"].append(time.monotonic_ns())
                stamp["tokens"].append(step.tokens)
            writer.write(data)
        if chunked:
            writer.write(b"0\r\n\r\n")
        return "connection: close" not in framing


async def _until(at_ns: int) -> None:
    left_s = (at_ns - time.monotonic_ns()) * 1e-9
    if left_s > 0:
        await asyncio.sleep(left_s)


def _script(engine: Engine, request: dict[str, object], *, chat: bool, shape: str) -> Script:
    options = engine.options
    answer = options.fake_answer if chat else None
    if answer and "{question}" in answer:
        answer = answer.replace("{question}", str(request["messages"][-1]["content"]))
    words = tuple(f" {word}" for word in answer.split()) if answer else (" tok",)
    words = (words[0][1:], *words[1:]) if answer else words
    asked = int(request.get("max_completion_tokens") or request.get("max_tokens") or 16)
    stream_options = request.get("stream_options") or {}
    prompt = request.get("messages") if chat else request.get("prompt")
    return Script(
        chat=chat,
        model=engine.model,
        prompt_tokens=count_tokens(prompt),
        output_tokens=min(asked, len(words)) if answer and not request.get("ignore_eos") else asked,
        texts=("é", "€", "🙂") if shape == "split-utf8" else words,
        finish_reason="stop" if answer and not request.get("ignore_eos") else "length",
        usage_at_end=bool(stream_options.get("include_usage")),
        usage_on_each=bool(stream_options.get("continuous_usage_stats")),
        ttft_s=options.fake_ttft_ms / 1000,
        itl_s=options.fake_itl_ms / 1000,
        tokens_per_event=options.fake_tokens_per_event,
        shape=shape,
    )


def _model_card(engine: Engine) -> dict[str, object]:
    root = engine.options.model
    return {"id": engine.model, "object": "model", "owned_by": "vllm", "root": root, "max_model_len": 4096}


def _tokenized(request: dict[str, object]) -> dict[str, object]:
    count = count_tokens(request.get("prompt", request.get("messages")))
    return {"count": count, "max_model_len": 4096, "tokens": list(range(300, 300 + count))}


# ---------------------------------------------------------------------- the process


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="api_server.py", allow_abbrev=False)
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name")
    parser.add_argument("--reject-flags", action="store_true", help="refuse unknown flags, as vLLM does")
    parser.add_argument("--fake-ttft-ms", type=float, default=5.0)
    parser.add_argument("--fake-itl-ms", type=float, default=1.0)
    parser.add_argument("--fake-tokens-per-event", type=int, default=1)
    parser.add_argument("--fake-start-delay-s", type=float, default=0.0)
    parser.add_argument("--fake-fail-start", metavar="TEXT")
    parser.add_argument("--fake-exit-after-requests", type=int, default=0, metavar="N")
    parser.add_argument("--fake-exit-code", type=int, default=1)
    parser.add_argument("--fake-hang-after-requests", type=int, default=0, metavar="N")
    parser.add_argument("--fake-unhealthy-answers", type=int, default=0, metavar="N", help="/health says 503 N times")
    parser.add_argument("--fake-shape", choices=SHAPES, default="plain")
    parser.add_argument(
        "--fake-shape-after", type=int, default=0, metavar="N", help="the first N requests are well behaved"
    )
    parser.add_argument("--fake-answer", metavar="TEXT", help="{question} in it is what was asked")
    parser.add_argument("--fake-version", default="0.0.0+fake")
    parser.add_argument("--fake-log", metavar="FILE", help="what to write into the log at start")
    parser.add_argument("--fake-server-info", metavar="JSON")
    parser.add_argument(
        "--fake-keep-alive-s", type=float, default=5.0, help="uvicorn closes idle connections after 5 s"
    )
    parser.add_argument("--fake-prefix-cache", action="store_true", help="count hits as a prefix cache would")
    parser.add_argument(
        "--fake-prefix-cache-accident", type=int, default=0, metavar="N", help="each prompt finds N tokens at least"
    )
    parser.add_argument("--fake-leak", action="store_true", help="show secrets wherever a careless server might")
    parser.add_argument("--fake-preemptions", type=int, default=0)
    known, unknown = parser.parse_known_args(argv)
    if known.reject_flags and unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return known


def _secrets() -> str:
    """What a careless server shows: its key and the hub's token, also as they travel in headers and addresses."""
    key, token = os.environ.get("VLLM_API_KEY", ""), os.environ.get("HF_TOKEN", "")
    encoded = base64.b64encode(token.encode()).decode()
    return f"key {key} token {token} base64 {encoded} header 'Authorization: Bearer {key}' env {dict(os.environ)}"


def _say_more(options: argparse.Namespace) -> None:
    if options.fake_leak:
        print(f"WARNING {_secrets()}", file=sys.stderr, flush=True)
    if options.fake_log:
        print(Path(options.fake_log).read_text(encoding="utf-8"), file=sys.stderr, flush=True)


def _fail_start(options: argparse.Namespace) -> None:
    print(
        "(EngineCore pid=1) ERROR 01-01 00:00:00 [core.py:1] EngineCore failed to start.\n"
        "(EngineCore pid=1) Traceback (most recent call last):\n"
        '(EngineCore pid=1)   File "core.py", line 1, in run_engine_core\n'
        f"(EngineCore pid=1) {options.fake_fail_start}{' ' + _secrets() if options.fake_leak else ''}\n"
        "RuntimeError: Engine core initialization failed. See root cause above.",
        file=sys.stderr,
        flush=True,
    )
    raise SystemExit(options.fake_exit_code)


async def _serve(options: argparse.Namespace) -> None:
    engine = Engine(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    parent = os.getppid()
    print(f"INFO fake engine (pid {os.getpid()}) starting with model {options.model}", file=sys.stderr, flush=True)
    _say_more(options)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stop.wait(), options.fake_start_delay_s)
    if options.fake_fail_start is not None:
        _fail_start(options)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await Connection(engine, reader, writer, engine.connections).serve()
        writer.close()

    try:
        server = await asyncio.start_server(serve, options.host, options.port, limit=1 << 24, backlog=2048)
    except OSError as error:
        print(f"ERROR: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error
    print(f"INFO Uvicorn running on http://{options.host}:{options.port}", file=sys.stderr, flush=True)
    while not stop.is_set() and os.getppid() == parent:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.2)
    server.close()
    print("INFO shut down", file=sys.stderr, flush=True)
    os._exit(0)  # answers under way are dropped, as vLLM does on SIGTERM


if __name__ == "__main__":
    asyncio.run(_serve(_options(sys.argv[1:])))
