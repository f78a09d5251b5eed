"""A running fake engine as tests see it, and workloads small enough for them."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.driver import run_load

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"
TOKENS = (300, 9_000)


@dataclass(frozen=True)
class FakeServer:
    """One live fake engine."""

    base_url: str
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.base_url + path, timeout=10) as answer:
            return answer.read()

    def stamps(self) -> list[dict[str, object]]:
        return json.loads(self.get("/fake/stamps"))

    def bodies(self) -> list[dict[str, object]]:
        return json.loads(self.get("/fake/requests"))

    def load(self, workload: Workload, *, seed: int = 1, **how: object) -> LoadRun:
        return run_load(
            workload,
            base_url=self.base_url,
            model="fake",
            api_key=how.pop("api_key", None),
            token_range=TOKENS,
            seed=seed,
            **how,
        )


@contextmanager
def running() -> Iterator[Callable[..., FakeServer]]:
    """Gives a function that starts fake engines with flags; all are stopped in the end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> FakeServer:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(FAKE_ENGINE), "--model", "fake", "--port", str(port), *flags]
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        processes.append(process)
        server = FakeServer(f"http://127.0.0.1:{port}", process)
        _wait_until_healthy(server)
        return server

    try:
        yield start
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)


def _wait_until_healthy(server: FakeServer) -> None:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        assert server.process.poll() is None, "the fake engine died while starting"
        try:
            server.get("/health")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the fake engine did not start in 20 s")


def small(**changes: object) -> Workload:
    """A closed-loop workload of a fraction of a second."""
    values = {"name": "small", "input_tokens": 8, "output_tokens": 12, "requests": 6, "max_concurrency": 2}
    return Workload(**{**values, "timeout_s": 20.0, "max_error_rate": 1.0, **changes})
