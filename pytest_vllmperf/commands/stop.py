"""Stop engines that --vllmperf-reuse keeps running on this machine.

Name some, or say --all. One that a run uses right now is left alone (exit code 1) unless --force is given.
"""

from __future__ import annotations

import argparse

from pytest_vllmperf.commands import Answer, tell
from pytest_vllmperf.errors import EngineError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("names", nargs="*", metavar="ENGINE", help="which engines, as vllmperf ps names them")
    parser.add_argument("--all", action="store_true", help="every engine that is kept, of all projects")
    parser.add_argument("--force", action="store_true", help="also those that a run uses right now")


def run(options: argparse.Namespace) -> Answer:
    """Stop what was asked for.

    Raises:
        EngineError: Nothing was asked for, no such engine is kept, or one does not end.
    """
    from pytest_vllmperf.adapters import kept_engines
    from pytest_vllmperf.adapters.engine_state import runtime_directory

    runtime = runtime_directory()
    kept = kept_engines.kept_engines(runtime)
    names = ", ".join(dict.fromkeys(engine.name for engine in kept)) or "none"
    if not options.names and not options.all:
        raise EngineError(f"name the engines to stop, or say --all; kept: {names}")
    for name in options.names:
        if name not in {engine.name for engine in kept}:
            raise EngineError(f"no engine {name!r} is kept; kept: {names}")
    stopped, left = [], []
    for engine in kept:
        if not options.all and engine.name not in options.names:
            continue
        if kept_engines.is_used(runtime, engine) and not options.force:
            left.append(engine)
            continue
        tell(f"stopping {engine.name} (pid {engine.pid})")
        kept_engines.stop(runtime, engine)
        stopped.append(engine)
    lines = [f"Stopped {engine.name} (pid {engine.pid})." for engine in stopped]
    lines += [f"Left {engine.name} (pid {engine.pid}): a run uses it; --force stops it anyway." for engine in left]
    return Answer(
        text="\n".join(lines) or "No engine is kept.",
        data={"stopped": [engine.pid for engine in stopped], "in_use": [engine.pid for engine in left]},
        exit_code=1 if left else 0,
    )
