"""This project's client beside ``vllm bench serve`` on one real server, at many streams, in alternating order.

Launches vLLM once for each count of API servers, drives a closed loop from either client in turn, and prints for each
run throughput, TTFT and TPOT as the client saw them, both by the engine's own histograms, and the client's CPU share.

    python benchmarks/clients_at_scale.py --model DIR --streams 512 1024 --api-servers 4 1 --rounds 2

On a GPU this is where a client becomes the bottleneck; on a CPU (``--streams 16 --api-servers 1``) it only shows that
all parts work. The last line is one JSON object: ``ratio_vs_vllm`` (our throughput divided by theirs, medians at most
streams and most API servers), ``tpot_error_pct`` (our TPOT against the engine's own), ``client_cpu_share``, and
``api_server_named`` (whether a measurement told that the API server was the limit where there was only one; null
where none ran with one).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

INPUT_TOKENS, OUTPUT_TOKENS = 64, 256
HISTOGRAMS = {
    "tpot": ("vllm:request_time_per_output_token_seconds", "vllm:inter_token_latency_seconds"),
    "ttft": ("vllm:time_to_first_token_seconds",),
}
BENCH = (
    "import argparse; from vllm.benchmarks import serve; p = argparse.ArgumentParser(); serve.add_cli_args(p); "
    "serve.main(p.parse_args())"
)


def main() -> None:
    """Run everything and print the table and the last line."""
    options = arguments()
    runs: list[dict[str, Any]] = []
    named: bool | None = None
    for servers in options.api_servers:
        with engine(options, servers) as handle:
            for streams in options.streams:
                for number in range(options.rounds):
                    order = ("ours", "vllm") if number % 2 == 0 else ("vllm", "ours")
                    for client in order:
                        run = {"client": client, "api_servers": servers, "streams": streams, "round": number}
                        run |= drive(client, handle, streams, options)
                        runs.append(run)
                        print(line(run), flush=True)
                        if options.log:
                            with options.log.open("a", encoding="utf-8") as log:
                                log.write(json.dumps(run) + "\n")
            if servers == 1:
                named = names_api_server(handle, max(options.streams), options)
    print(json.dumps({**conclusion(runs), "api_server_named": named}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "suites" / "models" / "tinymath"))
    parser.add_argument("--streams", type=int, nargs="+", default=[16])
    parser.add_argument("--api-servers", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests-per-stream", type=int, default=2)
    parser.add_argument("--log", type=Path, help="append each run as one JSON line")
    return parser.parse_args()


@contextmanager
def engine(options: argparse.Namespace, servers: int) -> Iterator[Any]:
    """One live engine that never has to queue: as many sequences as there are streams."""
    from pytest_vllmperf.adapters.environment import gather_environment
    from pytest_vllmperf.adapters.gpu import driver_version, list_gpus
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.pool import EnginePool

    args: dict[str, Any] = {"max-num-seqs": max(options.streams), "max-model-len": 2048}
    if servers > 1:
        args["api-server-count"] = servers
    config = EngineConfig(
        name="engine",
        model=options.model,
        args=args,
        cpu_args={"enforce-eager": True, "gpu-memory-utilization": 0.3},
    )
    environment = gather_environment(ROOT, gpus=list_gpus(), driver=driver_version())
    with tempfile.TemporaryDirectory() as logs:
        pool = EnginePool(
            engines={"engine": config}, environment=environment, directory=Path(logs), progress=lambda _line: None
        )
        try:
            yield pool.acquire("engine")
        finally:
            pool.close()


def drive(client: str, handle: Any, streams: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of one client, with what the engine's own histograms say of it."""
    requests = streams * options.requests_per_stream
    before = histograms(handle)
    run = (ours if client == "ours" else theirs)(handle, streams, requests)
    after = histograms(handle)
    for name in HISTOGRAMS:
        count = after[name][1] - before[name][1]
        run[f"engine_{name}_ms"] = 1e3 * (after[name][0] - before[name][0]) / count if count else None
    return run


def workload_of(streams: int, requests: int) -> Any:
    """The closed loop both clients drive."""
    from pytest_vllmperf.domain.workload import Workload

    return Workload(
        name="scale",
        input_tokens=INPUT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        requests=requests,
        max_concurrency=streams,
    )


def ours(handle: Any, streams: int, requests: int) -> dict[str, Any]:
    """Through the load process alone: the engine's histograms must hold nothing but this."""
    from pytest_vllmperf.domain.summary import summarize
    from pytest_vllmperf.load.driver import run_load
    from pytest_vllmperf.measurement import token_range

    workload = workload_of(streams, requests)
    run = run_load(
        workload,
        base_url=handle.base_url,
        model=handle.model_name,
        api_key=handle.api_key,
        token_range=token_range(handle.config.model),
        seed=time.monotonic_ns() % 2**31,
    )
    summary = summarize(run, engine="engine", model=handle.model_name, workload=workload)
    value = {name: metric.value for name, metric in summary.metrics.items()}
    return {
        "completed": summary.completed,
        "failures": dict(summary.failures),
        "tok_s": value["output_throughput"],
        "ttft_ms": 1e3 * value["ttft_mean"],
        "tpot_ms": 1e3 * value["tpot_mean"],
        "cpu_share": run.client.cpu_ns / run.client.wall_ns,
    }


def names_api_server(handle: Any, streams: int, options: argparse.Namespace) -> bool:
    """Whether a whole measurement, warm-up and counters included, says that the API server was the limit."""
    from pytest_vllmperf.measurement import measure

    summary = measure(handle, workload_of(streams, streams * options.requests_per_stream))
    told = [text for text in (*summary.warnings, *summary.invalid) if "api-server-count" in text]
    print("\n".join(told) or "no word of the API server", flush=True)
    return bool(told)


def theirs(handle: Any, streams: int, requests: int) -> dict[str, Any]:
    """``vllm bench serve`` in a process of its own; its CPU share is over its measured part and its start together."""
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-c", BENCH, "--backend", "vllm", "--base-url", handle.base_url]
        command += ["--model", handle.model_name, "--tokenizer", handle.config.model, "--endpoint", "/v1/completions"]
        command += ["--dataset-name", "random", "--random-input-len", str(INPUT_TOKENS)]
        command += ["--random-output-len", str(OUTPUT_TOKENS), "--num-prompts", str(requests), "--ignore-eos"]
        command += ["--max-concurrency", str(streams), "--seed", str(time.monotonic_ns() % 2**31), "--disable-tqdm"]
        command += ["--save-result", "--result-dir", results, "--result-filename", "result.json"]
        environment = {**os.environ, "OPENAI_API_KEY": handle.api_key, "VLLM_LOGGING_LEVEL": "ERROR"}
        spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit(f"vllm bench serve failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - spent
        result = json.loads((Path(results) / "result.json").read_text(encoding="utf-8"))
    return {
        "completed": result["completed"],
        "failures": {"failed": result["failed"]} if result.get("failed") else {},
        "tok_s": result["output_throughput"],
        "ttft_ms": result["mean_ttft_ms"],
        "tpot_ms": result["mean_tpot_ms"],
        "cpu_s_with_start": spent,
    }


def histograms(handle: Any) -> Mapping[str, tuple[float, float]]:
    """Sum and count of each of the engine's histograms; the first name that this version of vLLM has counts."""
    with urllib.request.urlopen(f"{handle.base_url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, tuple[float, float]] = {}
    for name, candidates in HISTOGRAMS.items():
        sums = ((total(lines, f"{c}_sum"), total(lines, f"{c}_count")) for c in candidates)
        found[name] = next((pair for pair in sums if pair[1]), (0.0, 0.0))
    return found


def total(lines: list[str], sample: str) -> float:
    """The sum of one sample over all labels."""
    return sum(float(text.rsplit(" ", 1)[1]) for text in lines if text.startswith((f"{sample}{{", f"{sample} ")))


def line(run: Mapping[str, Any]) -> str:
    """One run for people."""
    cpu = f"{run['cpu_share']:.0%}" if "cpu_share" in run else "-"
    own = " / ".join("-" if run[f"engine_{n}_ms"] is None else f"{run[f'engine_{n}_ms']:.2f}" for n in ("ttft", "tpot"))
    return (
        f"{run['client']:5} {run['api_servers']} API servers, {run['streams']:5} streams: {run['tok_s']:9.0f} tok/s, "
        f"TTFT {run['ttft_ms']:8.1f} ms, TPOT {run['tpot_ms']:7.2f} ms (engine {own}), client CPU {cpu}"
        + (f", FAILED {run['failures']}" if run["failures"] else "")
    )


def conclusion(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line."""
    most = max(r["api_servers"] for r in runs), max(r["streams"] for r in runs)
    top = [r for r in runs if (r["api_servers"], r["streams"]) == most]
    mine = [r for r in top if r["client"] == "ours"]
    other = [r for r in top if r["client"] == "vllm"]
    off = [abs(r["tpot_ms"] / r["engine_tpot_ms"] - 1) for r in mine if r["engine_tpot_ms"]]
    return {
        "api_servers": most[0],
        "streams": most[1],
        "ratio_vs_vllm": round(
            statistics.median(r["tok_s"] for r in mine) / statistics.median(r["tok_s"] for r in other), 3
        ),
        "tpot_error_pct": round(100 * max(off), 2) if off else None,
        "client_cpu_share": round(max(r["cpu_share"] for r in mine), 3),
    }


if __name__ == "__main__":
    main()
