"""The clients that ``client_overhead.py`` compares: each reads the same streams in its own way.

Each function prepares a client, with everything it loads, and returns what is to be timed: a call that drives all
streams and gives the number of token events it has understood.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Optional

__all__ = ["CLIENTS", "EVENTS", "STREAMS"]

STREAMS = 64
EVENTS = 80
"""In each stream."""
PROMPT = list(range(300, 316))
Run = Callable[[], int]
Runner = Callable[[Coroutine[Any, Any, int]], int]


def body(model: str) -> dict[str, object]:
    """What every client asks: usage once, at the end, as both ours and vLLM's do by themselves."""
    return {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": EVENTS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def on_uvloop() -> Runner:
    """uvloop's ``run``, loaded."""
    import uvloop

    return uvloop.run


def ours(base_url: str, model: str) -> Run:
    """The load process's own parts, as its worker puts them together: capture and every record."""
    on_uvloop()
    return _ours(base_url, model)


def ours_on_asyncio(base_url: str, model: str) -> Run:
    """The same where uvloop is not installed."""
    import sys

    sys.modules["uvloop"] = None  # type: ignore[assignment] - its import fails from here on
    return _ours(base_url, model)


def _ours(base_url: str, model: str) -> Run:
    from pytest_vllmperf.domain.workload import Workload
    from pytest_vllmperf.load.plan import Plan
    from pytest_vllmperf.load.worker import Drive

    workload = Workload(
        name="overhead", input_tokens=16, output_tokens=EVENTS, requests=STREAMS, max_concurrency=STREAMS
    )
    plan = Plan(
        workload=workload,
        base_url=base_url,
        model=model,
        api_key=None,
        token_range=(300, 9_000),
        seed=0,
        deadline_s=300.0,
    )

    def run() -> int:
        drive = Drive(plan)
        drive.run()
        return sum(len(r.event_ns) for r in drive.records() if r.succeeded)

    return run


def floor(base_url: str, model: str) -> Run:
    """The least a Python client can do that uvloop wakes up for each read: stamp it, keep it, understand nothing."""
    run_loop = on_uvloop()
    port = int(base_url.rpartition(":")[2])
    content = json.dumps(body(model)).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)
    reads: list[tuple[int, bytes]] = []

    class Floor(asyncio.Protocol):
        def __init__(self) -> None:
            self.ended = asyncio.get_running_loop().create_future()

        def data_received(self, data: bytes) -> None:
            reads.append((time.monotonic_ns(), data))
            if data.endswith(b"0\r\n\r\n"):
                self.ended.set_result(None)

    async def run() -> int:
        loop = asyncio.get_running_loop()
        pairs = [await loop.create_connection(Floor, "127.0.0.1", port) for _ in range(STREAMS)]
        for transport, _ in pairs:
            transport.write(request)
        await asyncio.gather(*(protocol.ended for _, protocol in pairs))
        for transport, _ in pairs:
            transport.close()
        return sum(data.count(b'"text":" tok"') for _, data in reads)

    return lambda: run_loop(run())


def endpoints(base_url: str, model: str) -> Run:
    """How the workers of mlcommons/endpoints read a stream, put together anew: a protocol on uvloop, httptools and
    msgspec in the loop, each request a coroutine that an event wakes. Without their messages to the main process."""
    import httptools
    import msgspec

    run_loop = on_uvloop()
    port = int(base_url.rpartition(":")[2])
    content = json.dumps(body(model)).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)

    choice = msgspec.defstruct("choice", [("text", Optional[str], None), ("finish_reason", Optional[str], None)])
    decode = msgspec.json.Decoder(msgspec.defstruct("event", [("choices", list[choice])])).decode

    class Answer(asyncio.Protocol):
        def __init__(self) -> None:
            self._parser = httptools.HttpResponseParser(self)
            self._pieces: list[bytes] = []
            self._more = asyncio.Event()
            self._complete = False

        def data_received(self, data: bytes) -> None:
            self._parser.feed_data(data)

        def on_body(self, piece: bytes) -> None:
            self._pieces.append(piece)
            self._more.set()

        def on_message_complete(self) -> None:
            self._complete = True
            self._more.set()

        async def pieces(self) -> AsyncIterator[list[bytes]]:
            while True:
                while self._pieces:
                    taken, self._pieces = self._pieces, []
                    yield taken
                if self._complete:
                    return
                self._more.clear()
                await self._more.wait()

    async def one() -> int:
        transport, answer = await asyncio.get_running_loop().create_connection(Answer, "127.0.0.1", port)
        transport.write(request)
        stamps: list[int] = []
        rest = b""
        async for pieces in answer.pieces():
            *events, rest = (rest + b"".join(pieces)).split(b"\n\n")
            for event in events:
                if event == b"data: [DONE]":
                    continue
                choices = decode(event[6:]).choices
                if choices and choices[0].text:
                    stamps.append(time.monotonic_ns())
        transport.close()
        return len(stamps)

    return lambda: run_loop(_sum(one))


def vllm(base_url: str, model: str, run_loop: Runner = asyncio.run) -> Run:
    """The function behind ``vllm bench serve --backend openai``, in its session and its event loop."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions

    asked = RequestFuncInput(
        prompt=PROMPT,
        api_url=f"{base_url}/v1/completions",
        prompt_len=len(PROMPT),
        output_len=EVENTS,
        model=model,
        ignore_eos=True,
        extra_body={"temperature": 0},
    )

    async def run() -> int:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=STREAMS, limit_per_host=STREAMS),
            timeout=aiohttp.ClientTimeout(total=300),
        ) as session:
            answers = await asyncio.gather(*(async_request_openai_completions(asked, session) for _ in range(STREAMS)))
        return sum(1 + len(answer.itl) for answer in answers if answer.success)

    return lambda: run_loop(run())


def vllm_on_uvloop(base_url: str, model: str) -> Run:
    """The same under uvloop, which it does not use by itself."""
    return vllm(base_url, model, on_uvloop())


def aiohttp(base_url: str, model: str, run_loop: Runner = asyncio.run) -> Run:
    """A plain aiohttp reader: lines and json."""
    import aiohttp

    async def run() -> int:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=STREAMS)) as session:

            async def one() -> int:
                stamps: list[int] = []
                async with session.post(f"{base_url}/v1/completions", json=body(model)) as answer:
                    async for line in answer.content:
                        _take_line(line.decode().strip(), stamps)
                return len(stamps)

            return await _sum(one)

    return lambda: run_loop(run())


def aiohttp_on_uvloop(base_url: str, model: str) -> Run:
    """The same under uvloop."""
    return aiohttp(base_url, model, on_uvloop())


def httpx(base_url: str, model: str) -> Run:
    """``httpx``'s ``aiter_lines`` and json."""
    import httpx

    async def run() -> int:
        limits = httpx.Limits(max_connections=STREAMS)
        async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:

            async def one() -> int:
                stamps: list[int] = []
                async with client.stream("POST", f"{base_url}/v1/completions", json=body(model)) as answer:
                    async for line in answer.aiter_lines():
                        _take_line(line, stamps)
                return len(stamps)

            return await _sum(one)

    return lambda: asyncio.run(run())


async def _sum(one: Callable[[], Awaitable[int]]) -> int:
    return sum(await asyncio.gather(*(one() for _ in range(STREAMS))))


def _take_line(line: str, stamps: list[int]) -> None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    choices = json.loads(line[6:])["choices"]
    if choices and choices[0]["text"]:
        stamps.append(time.monotonic_ns())


CLIENTS: dict[str, tuple[Callable[[str, str], Run], str]] = {
    "floor": (floor, "uvloop"),
    "ours": (ours, "uvloop"),
    "ours, asyncio": (ours_on_asyncio, "pytest_vllmperf"),
    "endpoints": (endpoints, "httptools"),
    "aiohttp, uvloop": (aiohttp_on_uvloop, "aiohttp"),
    "aiohttp": (aiohttp, "aiohttp"),
    "vllm, uvloop": (vllm_on_uvloop, "vllm"),
    "vllm": (vllm, "vllm"),
    "httpx": (httpx, "httpx"),
}
"""By name: how to prepare it, and the package it needs."""
