"""Memory of the load process over a million token events: at most 64 MiB and 48 B for each event.

A server that does next to nothing streams on 200 connections; the load process's largest resident set is read from the
kernel as it goes.

Run it from the repository: ``python benchmarks/client_memory.py``. The last line is one JSON object: ``events``,
``peak_mib`` and ``allowed_mib``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from pytest_vllmperf.domain.workload import Workload  # noqa: E402
from pytest_vllmperf.load.driver import run_load  # noqa: E402

STREAMS, TOKENS, REQUESTS, PERIOD_S = 200, 500, 2000, 0.008
_MIB = 1 << 20


def main() -> None:
    """Drive a million events, watch the load process, print one JSON line."""
    peak_kib = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak_kib
        while not over.wait(0.05):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error, OSError, StopIteration):
                    if "pytest_vllmperf.load.worker" in child.cmdline():
                        lines = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii").splitlines()
                        peak = next(line for line in lines if line.startswith("VmHWM:"))
                        peak_kib = max(peak_kib, int(peak.split()[1]))

    command = (sys.executable, "-m", "pytest_vllmperf.load.null_server", str(TOKENS), str(PERIOD_S))
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    watcher = threading.Thread(target=watch)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        watcher.start()
        asked = Workload(
            name="memory", input_tokens=64, output_tokens=TOKENS, requests=REQUESTS, max_concurrency=STREAMS
        )
        run = run_load(
            asked, base_url=f"http://127.0.0.1:{port}", model="null", api_key=None, token_range=(300, 30_000), seed=0
        )
    finally:
        over.set()
        server.kill()
        server.wait()
    watcher.join()
    events = sum(len(record.event_ns) for record in run.records if record.succeeded)
    client = run.client
    print(
        f"{events} events in {client.wall_ns * 1e-9:.1f} s, {client.busiest_share:.0%} of a core, event-loop lag p99 "
        f"{(client.loop_lag_p99_ns or 0) / 1e6:.2f} ms"
    )
    allowed = 64 + 48 * events / _MIB
    print(json.dumps({"events": events, "peak_mib": round(peak_kib / 1024, 1), "allowed_mib": round(allowed, 1)}))


if __name__ == "__main__":
    main()
