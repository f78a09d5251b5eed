"""CPU time each load client spends on one streamed token event: ours, and those of others (``overhead_clients.py``).

The reference server of the tests streams one-token events on 64 connections at once, paced, so that every event is a
read of its own. Each client runs in a process of its own, all in turn, several rounds; the median
of each counts. Its CPU time covers everything from the first connection to usable numbers: capture and parsing. Once
more with four events in each write: events that share a read must cost less.

``floor`` is the least a Python client on uvloop can do that wakes up for each event: stamp each read, keep it,
understand nothing. One that serves several sockets in one wake-up may cost less.

Run it from the repository: ``python benchmarks/client_overhead.py [--rounds 5]``. The last line is one JSON object:
``us_per_event`` (ours), ``vllm_us_per_event``, ``ratio_vs_vllm`` (vLLM's time divided by ours: larger is better for
us), ``events_per_s_per_core`` (ours), ``ratio_vs_vllm_uvloop``, ``shared_read_us_per_event`` and the ``floor``. What is
not installed is null.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from overhead_clients import CLIENTS, EVENTS, STREAMS  # noqa: E402
from reference import MODEL, ReferenceServer, reference_server  # noqa: E402

TPOT_MS = 60
"""Slow on purpose: where events come close together a busy machine lets several fall into one read, which is cheap."""
PACE = ("--ttft-ms", "200", "--tpot-ms", str(TPOT_MS))
SHARED = "ours, 4 a read"


def main() -> None:
    """Run all clients in turn, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="fewer clients")
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--base-url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(measure(options.client, options.base_url)))
    else:
        compare(options.rounds, options.only)


def compare(rounds: int, clients: list[str]) -> None:
    """Interleave the clients against one server and print what each costs."""
    present = [name for name in clients if importlib.util.find_spec(CLIENTS[name][1])]
    costs: dict[str, list[float]] = {name: [] for name in (*present, SHARED)}
    with reference_server(*PACE) as server:
        for number in range(rounds):
            for name in present if number % 2 == 0 else reversed(present):
                costs[name].append(in_own_process(name, server))
            server.control("shape/coalesced")
            costs[SHARED].append(in_own_process("ours", server))
            server.control("shape/plain")
    print(f"{STREAMS} streams x {EVENTS} one-token events, {1000 / TPOT_MS:.3g} tokens/s each, {rounds} rounds")
    medians: dict[str, float] = {}
    for name, values in costs.items():
        medians[name] = statistics.median(values)
        print(f"{name:15} {medians[name]:7.1f} us CPU/event  (min {min(values):.1f}, max {max(values):.1f})")
    print(json.dumps(result_of(medians)))


def result_of(medians: dict[str, float]) -> dict[str, float | None]:
    """What the last line says."""
    ours = medians["ours"]

    def ratio(name: str) -> float | None:
        return round(medians[name] / ours, 2) if name in medians else None

    return {
        "us_per_event": round(ours, 2),
        "vllm_us_per_event": round(medians["vllm"], 2) if "vllm" in medians else None,
        "ratio_vs_vllm": ratio("vllm"),
        "events_per_s_per_core": round(1e6 / ours),
        "ratio_vs_vllm_uvloop": ratio("vllm, uvloop"),
        "shared_read_us_per_event": round(medians[SHARED], 2),
        "floor_us_per_event": round(medians["floor"], 2) if "floor" in medians else None,
    }


def in_own_process(name: str, server: ReferenceServer) -> float:
    """Microseconds of CPU time for each event, as one client run found them."""
    server.control("reset")
    command = [sys.executable, __file__, "--client", name, "--base-url", server.base_url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"client {name} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, base_url: str) -> float:
    """Drive all streams with one client. Every client freezes the collector's heap, as its real runs do."""
    prepare, _ = CLIENTS[name]
    run = prepare(base_url, MODEL)
    gc.collect()
    gc.freeze()
    started_ns = time.process_time_ns()
    events = run()
    spent_us = (time.process_time_ns() - started_ns) / 1000
    if events != STREAMS * EVENTS:
        raise SystemExit(f"client {name} saw {events} events instead of {STREAMS * EVENTS}")
    return spent_us / events


if __name__ == "__main__":
    main()
