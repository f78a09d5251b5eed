"""The fake engine as a running server."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from serving import FAKE_ENGINE, FakeServer, wait_until_healthy


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """Start fake engines with the flags given; all are stopped afterwards."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> FakeServer:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(FAKE_ENGINE), "--model", "fake", "--port", str(port), *flags]
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        processes.append(process)
        server = FakeServer(f"http://127.0.0.1:{port}", process)
        wait_until_healthy(server)
        return server

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(10)
