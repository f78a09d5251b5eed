"""List the engines that --vllmperf-reuse keeps running on this machine.

One line each: which engine of which project, its process and address, the GPUs it occupies, how long it runs, whether
a run uses it right now, and after what time without use it ends by itself.
"""

from __future__ import annotations

import argparse
import time

from pytest_vllmperf.commands import Answer, columns

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: argparse.Namespace) -> Answer:
    """Look, and tell; ``options`` has nothing to say: engines are of the machine, not of a project."""
    from pytest_vllmperf.adapters.engine_state import runtime_directory
    from pytest_vllmperf.adapters.kept_engines import is_used, kept_engines

    runtime, now = runtime_directory(), time.time()
    kept = [(engine, is_used(runtime, engine)) for engine in kept_engines(runtime)]
    facts = [
        {
            "name": engine.name,
            "project": engine.project,
            "pid": engine.pid,
            "base_url": engine.base_url,
            "model": engine.model_name,
            "gpu_uuids": engine.gpu_uuids,
            "running_s": round(now - engine.launched_at, 1),
            "runs": engine.uses,
            "used_now": used,
            "idle_limit_s": engine.idle_s,
            "log_path": engine.log_path,
        }
        for engine, used in kept
    ]
    if not kept:
        return Answer(text="No engine is kept. (pytest --vllmperf-reuse keeps them.)", data=facts)
    rows = [
        (
            engine.name,
            str(engine.pid),
            engine.base_url,
            ",".join(engine.gpu_uuids) or "CPU",
            f"{(now - engine.launched_at) / 60:.0f} min",
            str(engine.uses),
            "in use" if used else "idle",
            engine.project,
        )
        for engine, used in kept
    ]
    head = ("ENGINE", "PID", "ADDRESS", "DEVICE", "UP", "RUNS", "STATE", "PROJECT")
    return Answer(text=columns(head, rows, right=("PID", "UP", "RUNS")), data=facts)
