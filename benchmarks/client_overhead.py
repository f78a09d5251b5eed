"""CPU time each load client spends on one streamed token event: ours, ``vllm bench serve``'s, aiohttp's, httpx's.

``floor`` is the least any Python client on uvloop can do: stamp each read, keep it, understand nothing.

A scripted server streams one-token events on 64 connections at once, paced, so that every event is a read of its
own. Each client runs in a process of its own, all in turn, several rounds; the median of each counts. Its CPU time
covers everything from the first connection to usable numbers: capture and parsing.

Run it from the repository: ``python benchmarks/client_overhead.py [--rounds 3]``. The last line is one JSON object:
``us_per_event`` (ours), ``vllm_us_per_event``, ``ratio_vs_vllm`` (vLLM's time divided by ours: larger is better for
us) and ``events_per_s_per_core`` (ours). What is not installed is null.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STREAMS = 64
EVENTS = 80
"""In each stream."""
ITL_MS = 60
"""Slow on purpose: where events come close together a busy machine lets several fall into one read, which is cheap."""
CLIENTS = {"floor": "uvloop", "ours": "pytest_vllmperf", "vllm": "vllm", "aiohttp": "aiohttp", "httpx": "httpx"}
PROMPT = list(range(300, 316))
BODY = {
    "model": "fake",
    "prompt": PROMPT,
    "max_tokens": EVENTS,
    "ignore_eos": True,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


def main() -> None:
    """Run all clients in turn, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--base-url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(measure(options.client, options.base_url)))
    else:
        compare(options.rounds)


def compare(rounds: int) -> None:
    """Interleave the clients against one server and print what each costs."""
    present = [name for name, package in CLIENTS.items() if importlib.util.find_spec(package)]
    costs: dict[str, list[float]] = {name: [] for name in present}
    server, base_url = start_server()
    try:
        for _ in range(rounds):
            for name in present:
                costs[name].append(in_own_process(name, base_url))
    finally:
        server.terminate()
        server.wait(10)
    medians: dict[str, float] = {}
    print(f"{STREAMS} streams x {EVENTS} one-token events, {1000 / ITL_MS:g} tokens/s each, {rounds} rounds")
    for name, values in costs.items():
        medians[name] = statistics.median(values)
        print(f"{name:8} {medians[name]:7.1f} us CPU/event  (min {min(values):.1f}, max {max(values):.1f})")
    ours, vllm = medians["ours"], medians.get("vllm")
    result = {
        "us_per_event": round(ours, 2),
        "vllm_us_per_event": None if vllm is None else round(vllm, 2),
        "ratio_vs_vllm": None if vllm is None else round(vllm / ours, 2),
        "events_per_s_per_core": round(1e6 / ours),
        "floor_us_per_event": round(medians["floor"], 2) if "floor" in medians else None,
    }
    print(json.dumps(result))


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """The scripted server of the tests, ready to answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "fake_engine.py"), "--model", "fake", "--port", str(port)]
    pace = ["--fake-ttft-ms", "200", "--fake-itl-ms", str(ITL_MS)]
    server = subprocess.Popen([*command, *pace], stderr=subprocess.DEVNULL)
    base_url = f"http://127.0.0.1:{port}"
    for _ in range(200):
        if is_healthy(base_url):
            return server, base_url
        time.sleep(0.05)
    server.kill()
    raise SystemExit("the scripted server did not start in 10 s")


def is_healthy(base_url: str) -> bool:
    """True when the server answers."""
    try:
        urllib.request.urlopen(f"{base_url}/health", timeout=5).close()
    except urllib.error.URLError:
        return False
    return True


def in_own_process(name: str, base_url: str) -> float:
    """Microseconds of CPU time for each event, as one client run found them."""
    command = [sys.executable, __file__, "--client", name, "--base-url", base_url]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise SystemExit(f"client {name} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}


def measure(name: str, base_url: str) -> float:
    """Drive all streams with one client. Every client freezes the collector's heap, as its real runs do."""
    run = {
        "floor": prepare_floor,
        "ours": prepare_ours,
        "vllm": prepare_vllm,
        "aiohttp": prepare_aiohttp,
        "httpx": prepare_httpx,
    }[name](base_url)
    gc.collect()
    gc.freeze()
    started_ns = time.process_time_ns()
    events = run()
    spent_us = (time.process_time_ns() - started_ns) / 1000
    if events != STREAMS * EVENTS:
        raise SystemExit(f"client {name} saw {events} events instead of {STREAMS * EVENTS}")
    return spent_us / events


def prepare_ours(base_url: str) -> Callable[[], int]:
    """The load process's own parts, as its worker puts them together."""
    import uvloop  # noqa: F401 - like the others' packages, loaded before the clock starts

    from pytest_vllmperf.domain.workload import Workload
    from pytest_vllmperf.load.plan import Plan
    from pytest_vllmperf.load.worker import Drive

    workload = Workload(
        name="overhead", input_tokens=16, output_tokens=EVENTS, requests=STREAMS, max_concurrency=STREAMS
    )
    plan = Plan(
        workload=workload,
        base_url=base_url,
        model="fake",
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


def prepare_floor(base_url: str) -> Callable[[], int]:
    """Stamps and raw bytes only; even the end of an answer is just the look of its last bytes."""
    import uvloop

    port = int(base_url.rpartition(":")[2])
    body = json.dumps(BODY).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
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

    return lambda: uvloop.run(run())


def prepare_vllm(base_url: str) -> Callable[[], int]:
    """The function behind ``vllm bench serve --backend openai``, in its session and its event loop."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions

    asked = RequestFuncInput(
        prompt=PROMPT,
        api_url=f"{base_url}/v1/completions",
        prompt_len=len(PROMPT),
        output_len=EVENTS,
        model="fake",
        ignore_eos=True,
        extra_body={"temperature": 0, "stream_options": BODY["stream_options"]},
    )

    async def run() -> int:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=STREAMS, limit_per_host=STREAMS),
            timeout=aiohttp.ClientTimeout(total=300),
        ) as session:
            answers = await asyncio.gather(*(async_request_openai_completions(asked, session) for _ in range(STREAMS)))
        return sum(1 + len(answer.itl) for answer in answers if answer.success)

    return lambda: asyncio.run(run())


def prepare_aiohttp(base_url: str) -> Callable[[], int]:
    """A plain aiohttp reader: lines and json."""
    import aiohttp

    async def run() -> int:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=STREAMS)) as session:

            async def one() -> int:
                stamps: list[int] = []
                async with session.post(f"{base_url}/v1/completions", json=BODY) as answer:
                    async for line in answer.content:
                        _take_line(line.decode().strip(), stamps)
                return len(stamps)

            return await _sum(one)

    return lambda: asyncio.run(run())


def prepare_httpx(base_url: str) -> Callable[[], int]:
    """``httpx``'s ``aiter_lines`` and json."""
    import httpx

    async def run() -> int:
        limits = httpx.Limits(max_connections=STREAMS)
        async with httpx.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:

            async def one() -> int:
                stamps: list[int] = []
                async with client.stream("POST", f"{base_url}/v1/completions", json=BODY) as answer:
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


if __name__ == "__main__":
    main()
