"""An open loop keeps its schedule, and a server that stalls cannot hide its queue.

First 500 requests a second arrive at random for 20 s: how late is each sent? Then 200 arrive evenly each second, and
the server stops dead for 1 s in the middle; what the 99th percentile of response TTFT must then be follows from the
schedule and from when the server says it stood still.

Run it from the repository: ``python benchmarks/open_loop.py``. The last line is one JSON object:
``dispatch_lag_p99_ms`` and ``stall_error_pct``.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reference import MODEL, ReferenceServer, reference_server  # noqa: E402

from pytest_vllmperf.domain.records import LoadRun, latency_s  # noqa: E402
from pytest_vllmperf.domain.workload import Workload  # noqa: E402
from pytest_vllmperf.load.driver import run_load  # noqa: E402

TTFT_S = 0.02


def drive(server: ReferenceServer, **changes: object) -> LoadRun:
    asked = Workload(**{"name": "open", "input_tokens": 8, "output_tokens": 4, "timeout_s": 30.0, **changes})
    return run_load(asked, base_url=server.base_url, model=MODEL, api_key=None, token_range=(300, 30_000), seed=1)


def dispatch_lag_ms(server: ReferenceServer) -> float:
    run = drive(server, request_rate=500.0, requests=10_000)
    lags_ms = np.array([(r.dispatched_ns - r.intended_ns) / 1e6 for r in run.records])
    print(
        f"500 req/s: {sum(r.succeeded for r in run.records)} of {len(run.records)} answered; sent late by p50 "
        f"{np.percentile(lags_ms, 50):.3f}, p99 {np.percentile(lags_ms, 99):.3f}, most {lags_ms.max():.3f} ms"
    )
    return float(np.percentile(lags_ms, 99))


def stall_error_pct(server: ReferenceServer) -> float:
    stood: dict[str, int] = {}

    def stall() -> None:
        time.sleep(4.0)
        stood.update(server.control("stall/1.0"))

    trouble = threading.Thread(target=stall)
    trouble.start()
    run = drive(server, request_rate=200.0, burstiness=math.inf, requests=2_000)
    trouble.join()
    response = [latency_s(r, "ttft", open_loop=True) or 0.0 for r in run.records]
    from_ns, to_ns = stood["from_ns"], stood["to_ns"]
    expected = [
        TTFT_S + (max(0, to_ns - r.intended_ns) * 1e-9 if from_ns - TTFT_S * 1e9 <= r.intended_ns <= to_ns else 0.0)
        for r in run.records
    ]
    # What was under way when it stopped waits for the rest of the stall, not from its own arrival.
    expected = [
        max(TTFT_S, (to_ns - r.intended_ns) * 1e-9) if r.intended_ns < from_ns <= r.intended_ns + TTFT_S * 1e9 else e
        for r, e in zip(run.records, expected, strict=True)
    ]
    got, must = np.percentile(response, 99), np.percentile(expected, 99)
    print(
        f"stall of {(to_ns - from_ns) * 1e-9:.3f} s: p99 response TTFT {got * 1e3:.1f} ms, must be {must * 1e3:.1f} ms"
    )
    return float(abs(got - must) / must * 100)


def main() -> None:
    """Both, and one JSON line."""
    with reference_server("--ttft-ms", str(TTFT_S * 1e3), "--tpot-ms", "2") as server:
        result = {
            "dispatch_lag_p99_ms": round(dispatch_lag_ms(server), 3),
            "stall_error_pct": round(stall_error_pct(server), 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
