"""Starting the reference server, and what it says was true. For tests and for ``benchmarks/``."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MODEL", "SERVER", "ReferenceServer", "first_served", "reference_server"]

SERVER = Path(__file__).with_name("reference_server.py")
MODEL = "reference"
_START_S = 20.0


@dataclass(frozen=True)
class ReferenceServer:
    """A live reference server."""

    base_url: str
    pid: int

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.base_url + path, timeout=60) as answer:
            return answer.read()

    def control(self, what: str) -> Any:
        """One of the server's ``/reference/…`` pages, such as ``stamps``."""
        return json.loads(self.get(f"/reference/{what}"))

    def stamps(self) -> list[dict[str, Any]]:
        """The truth about each request, in order of arrival."""
        return self.control("stamps")


def first_served(core: int) -> tuple[str, ...]:
    """The ``command`` of a server that keeps to a core, and is served there before all others where that is allowed.

    What tells the truth about a starved client must not be starved itself.
    """
    pinned = ("taskset", "-c", str(core))
    ahead = ("chrt", "--fifo", "10")
    allowed = shutil.which("chrt") and not subprocess.run([*ahead, "true"], stderr=subprocess.DEVNULL).returncode
    return (*ahead, *pinned) if allowed else pinned


@contextmanager
def reference_server(
    *flags: str, env: dict[str, str] | None = None, command: tuple[str, ...] = ()
) -> Iterator[ReferenceServer]:
    """A reference server with these flags, stopped in the end. ``command`` goes before Python, such as ``taskset``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [*command, sys.executable, str(SERVER), "--model", MODEL, "--port", str(port), *flags]
    process = subprocess.Popen(argv, env={**os.environ, **(env or {})}, stderr=subprocess.DEVNULL)
    server = ReferenceServer(f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait_until_it_listens(process, port)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    limit = time.monotonic() + _START_S
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise RuntimeError(f"the reference server ended with {process.returncode} while starting")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"the reference server did not listen within {_START_S:g} s")
