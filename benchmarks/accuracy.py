"""How true the measured latencies are: ours and ``vllm bench serve``'s client against the server's own send stamps.

256 streams of 50 tokens a second, spread evenly over time, on the reference server of the tests, which keeps the
moment of every send. Compared are the percentiles of TTFT, TPOT and E2EL, and every request by itself. Then every
hostile shape of answer: which client takes which for a success.

Run it from the repository: ``python benchmarks/accuracy.py``. The last line is one JSON object: ``worst_error_ms`` and
``worst_error_pct`` (of our p50s and p99s, each the worst), ``misclassified`` and ``vllm_misclassified`` (requests).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reference import MODEL, ReferenceServer, reference_server  # noqa: E402

from pytest_vllmperf.domain.records import latency_s  # noqa: E402
from pytest_vllmperf.domain.workload import Workload  # noqa: E402
from pytest_vllmperf.load.driver import run_load  # noqa: E402
from pytest_vllmperf.load.questions import prompts  # noqa: E402

STREAMS = 256
ROUNDS = 3
TOKENS = 100
TTFT_S, TPOT_S = 0.2, 0.02
RANGE = (300, 30_000)
LATENCIES = ("ttft", "tpot", "e2el")
GOOD = (
    *("plain", "role-first", "role+first", "four-tokens", "coalesced", "reasoning", "tool", "split-utf8", "crlf"),
    *("comments", "multi-line", "content-length", "close-delimited", "connection-close"),
)
BAD = (
    *("in-band-error", "cut", "no-done", "no-finish", "empty", "wrong-length", "http-500", "http-429", "garbage"),
    *("not-http", "html"),
)
Latencies = dict[str, np.ndarray]


def workload(**changes: object) -> Workload:
    values = {"name": "accuracy", "input_tokens": 16, "output_tokens": TOKENS, "requests": STREAMS * ROUNDS}
    spread = {"max_concurrency": STREAMS, "ramp_s": TTFT_S + TOKENS * TPOT_S, "max_error_rate": 1.0}
    return Workload(**{**values, **spread, **changes})


def truth_of(server: ReferenceServer) -> dict[tuple[int, ...], dict[str, float]]:
    """The server's own latencies of each request, by the opening of its prompt."""
    found = {}
    for truth in server.stamps():
        first, last = truth["sent_ns"][0], truth["sent_ns"][-1]
        rest = sum(truth["tokens"]) - truth["tokens"][0]
        found[tuple(truth["opening"])] = {
            "ttft": (first - truth["arrived_ns"]) * 1e-9,
            "e2el": (last - truth["arrived_ns"]) * 1e-9,
            "tpot": (last - first) * 1e-9 / rest,
        }
    return found


def ours(server: ReferenceServer) -> list[tuple[tuple[int, ...], dict[str, float]]]:
    """Our latencies by the opening of the prompt."""
    asked = workload()
    run = run_load(asked, base_url=server.base_url, model=MODEL, api_key=None, token_range=RANGE, seed=1)
    openings = [prompt[:8] for prompt in prompts(asked, token_range=RANGE, seed=1)]
    lag = run.client.loop_lag_p99_ns or 0
    print(f"ours: {sum(r.succeeded for r in run.records)} answers, event-loop lag p99 {lag / 1e6:.2f} ms")
    return [
        (openings[r.index], {name: latency_s(r, name, open_loop=False) or 0.0 for name in LATENCIES})
        for r in run.records
        if r.succeeded
    ]


def vllms(server: ReferenceServer) -> list[tuple[tuple[int, ...], dict[str, float]]]:
    """The same load through the function behind ``vllm bench serve --backend openai``, in its session and loop."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_completions

    drawn = list(prompts(workload(), token_range=RANGE, seed=2))
    found: list[tuple[tuple[int, ...], dict[str, float]]] = []

    async def stream(place: int, session: aiohttp.ClientSession) -> None:
        await asyncio.sleep(place * (TTFT_S + TOKENS * TPOT_S) / STREAMS)
        for turn in range(ROUNDS):
            prompt = drawn[place * ROUNDS + turn]
            asked = RequestFuncInput(
                prompt=list(prompt),
                api_url=f"{server.base_url}/v1/completions",
                prompt_len=len(prompt),
                output_len=TOKENS,
                model=MODEL,
                ignore_eos=True,
            )
            answer = await async_request_openai_completions(asked, session)
            tpot = (answer.latency - answer.ttft) / (answer.output_tokens - 1)  # as its report computes it
            found.append((prompt[:8], {"ttft": answer.ttft, "tpot": tpot, "e2el": answer.latency}))

    async def run() -> None:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=STREAMS, limit_per_host=STREAMS),
            timeout=aiohttp.ClientTimeout(total=300),
        ) as session:
            await asyncio.gather(*(stream(place, session) for place in range(STREAMS)))

    asyncio.run(run())
    return found


def compare(name: str, client: Callable[[ReferenceServer], list], server: ReferenceServer) -> list[tuple[float, float]]:
    """Drive one client, print its errors; the error of each percentile in ms and as a share."""
    server.control("reset")
    seen = client(server)
    truth = truth_of(server)
    errors = []
    for latency in LATENCIES:
        measured = np.array([values[latency] for _, values in seen])
        true = np.array([truth[opening][latency] for opening, _ in seen])
        apart = np.abs(measured - true)
        for percent in (50, 99):
            got, real = np.percentile(measured, percent), np.percentile(true, percent)
            off_ms, share = abs(got - real) * 1e3, abs(got - real) / real * 100
            errors.append((off_ms, share))
            each_ms = np.percentile(apart, percent) * 1e3
            print(
                f"{name:5} {latency:5} p{percent}: {got * 1e3:9.3f} ms, true {real * 1e3:9.3f}, "
                f"off by {off_ms:6.3f} ms ({share:.2f} %); request by request p{percent} {each_ms:.3f} ms"
            )
    return errors


# ---------------------------------------------------------------------- shapes


def our_successes(server: ReferenceServer, chat: bool) -> int:
    asked = workload(
        requests=8,
        max_concurrency=4,
        output_tokens=12,
        ramp_s=0.0,
        api="chat" if chat else "completions",
        timeout_s=10.0,
    )
    run = run_load(asked, base_url=server.base_url, model=MODEL, api_key=None, token_range=RANGE, seed=time.time_ns())
    return sum(record.succeeded for record in run.records)


def vllm_successes(server: ReferenceServer, chat: bool) -> int:
    import aiohttp
    from vllm.benchmarks.lib import endpoint_request_func as peer

    call = peer.async_request_openai_chat_completions if chat else peer.async_request_openai_completions
    path = "chat/completions" if chat else "completions"

    async def run() -> int:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            asked = peer.RequestFuncInput(
                prompt="time year people way",
                api_url=f"{server.base_url}/v1/{path}",
                prompt_len=4,
                output_len=12,
                model=MODEL,
                ignore_eos=True,
            )
            return sum(answer.success for answer in [await call(asked, session) for _ in range(8)])

    return asyncio.run(run())


def misclassified(successes: Callable[[ReferenceServer, bool], int], name: str) -> int:
    wrong = 0
    with reference_server("--ttft-ms", "5", "--tpot-ms", "1") as server:
        for shape in (*GOOD, *BAD):
            server.control(f"shape/{shape}")
            got = successes(server, shape in ("role-first", "role+first", "reasoning", "tool"))
            missed = 8 - got if shape in GOOD else got
            wrong += missed
            if missed:
                print(f"{name:5} {shape}: {missed} of 8 taken for {'failures' if shape in GOOD else 'successes'}")
    return wrong


def main() -> None:
    """Compare, and print one JSON line."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    pace = ("--ttft-ms", str(TTFT_S * 1e3), "--tpot-ms", str(TPOT_S * 1e3))
    with reference_server(*pace) as server:
        errors = compare("ours", ours, server)
        theirs = compare("vllm", vllms, server) if has_vllm else []
    result = {
        "worst_error_ms": round(max(ms for ms, _ in errors), 3),
        "worst_error_pct": round(max(share for _, share in errors), 3),
        "within_1_ms_or_2_pct": all(ms <= 1.0 or share <= 2.0 for ms, share in errors),
        "misclassified": misclassified(our_successes, "ours"),
        "vllm_misclassified": misclassified(vllm_successes, "vllm") if has_vllm else None,
        "vllm_worst_error_ms": round(max(ms for ms, _ in theirs), 3) if theirs else None,
        "vllm_worst_error_pct": round(max(share for _, share in theirs), 3) if theirs else None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
