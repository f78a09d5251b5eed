"""Serve one engine of the matrix: what was gated is what runs.

The engine is launched exactly as `pytest suites/` launches it (same command line, environment, GPUs and guardian),
on loopback. Its address and key are printed once it answers; Ctrl-C, or the end of this command in whatever way,
stops it and everything it started. With --json one line of JSON is printed instead, as soon as it is ready.
"""

from __future__ import annotations

import argparse
import signal
from types import FrameType
from typing import TYPE_CHECKING

from pytest_vllmperf.commands import Answer, tell

if TYPE_CHECKING:
    import threading

    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.pool import EnginePool
    from pytest_vllmperf.session import Session

__all__ = ["add_arguments", "run"]

_LOOK_S = 2.0
_HIGHEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="the name of an engine that conftest.py declares")
    parser.add_argument("--port", type=_port, metavar="N", help="listen on this port (default: one that is free)")
    parser.add_argument(
        "--share-cpu", action="store_true", help="do not wait for engines of other runs that use this machine's CPU"
    )


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= _HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 1 to {_HIGHEST_PORT}")
    return int(text)


def run(options: argparse.Namespace) -> Answer:
    """Serve until told to stop."""
    from pytest_vllmperf.errors import EngineConfigError, EngineError
    from pytest_vllmperf.standalone import session_at

    session = session_at(options.directory, ["--vllmperf-share-cpu"] if options.share_cpu else [])
    if options.engine not in session.engines:
        declared = ", ".join(session.engines) or "none"
        raise EngineConfigError(f"engine {options.engine!r}: no such engine; declared: {declared}")
    if session.engines[options.engine].url is not None:
        raise EngineConfigError(
            f"engine {options.engine!r} is a server that runs already ({session.engines[options.engine].url}): "
            "there is nothing to start"
        )
    if options.port is not None:
        _check_free(options.port)
    pool = _pool(session, options.port)
    stopping = _stop_on_signals()
    try:
        handle = pool.acquire(options.engine)
        _announce(handle, as_json=options.json)
        while not stopping.wait(_LOOK_S):
            pool.ensure_alive(options.engine)
    except EngineError:
        if not stopping.is_set():
            raise
    finally:
        pool.close()
    tell(f"{options.engine}: stopped")
    return Answer(text="", data=None)


def _check_free(port: int) -> None:
    from pytest_vllmperf.adapters.engine_command import is_port_free
    from pytest_vllmperf.errors import EngineError

    if not is_port_free(port):
        raise EngineError(f"port {port} is taken: stop what listens there, or leave --port out")


def _pool(session: Session, port: int | None) -> EnginePool:
    """A pool of the project's engines whose progress goes to stderr."""
    from pytest_vllmperf.adapters.leases import HostLeases, lease_directory
    from pytest_vllmperf.pool import EnginePool

    options = session.options
    return EnginePool(
        engines=session.engines,
        environment=session.environment,
        directory=options.report_directory.parent / "serving",
        progress=tell,
        leases=HostLeases(lease_directory(), share_cpu=options.share_cpu, project=str(options.root)),
        ports=None if port is None else lambda: port,
    )


def _stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts for good."""
    import threading

    stopping = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopping


def _announce(handle: EngineHandle, *, as_json: bool) -> None:
    """Say where it is and how to ask it, at once: on stdout, which is what scripts read."""
    import json

    address = f"{handle.base_url}/v1"
    if as_json:
        facts = {
            "engine": handle.name,
            "url": address,
            "model": handle.model_name,
            "api_key": handle.api_key,
            "pid": handle.pid,
            "log": handle.log_path,
            "command": handle.command,
        }
        print(json.dumps(facts), flush=True)  # noqa: T201 - a command speaks by printing
        return
    lines = (
        f"# {handle.name} serves {handle.model_name}; Ctrl-C stops it",
        f"export OPENAI_BASE_URL={address}",
        f"export OPENAI_API_KEY={handle.api_key}",
    )
    print("\n".join(lines), flush=True)  # noqa: T201 - a command speaks by printing
