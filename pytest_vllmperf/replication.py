"""Launches of one engine for limits on levels: as many as it takes to decide, and the last one stays alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.intervals import LAUNCH_LOOKS
from pytest_vllmperf.domain.replicates import pooled

if TYPE_CHECKING:
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.experiment import Asked, PoolLauncher

__all__ = ["launch_until_decided"]


def launch_until_decided(
    name: str,
    asked: Sequence[Asked],
    *,
    launcher: PoolLauncher,
    launches: int,
    undecided: Callable[[Mapping[str, Summary]], bool],
    keep: Callable[[Mapping[str, Summary]], None],
    progress: Callable[[str], None],
) -> EngineHandle:
    """Launch engine ``name`` up to ``launches`` times, measuring ``asked`` on each, and leave the last one running.

    Args:
        name: An engine of the pool.
        asked: What is measured on each launch.
        launcher: Whose pool launches.
        launches: The budget; looks are at 3, 5 and 8 of them, and at the budget.
        undecided: Whether, after a look, another launch is needed; given every measurement so far, pooled.
        keep: Called after each launch with the same.
        progress: Called with short lines about what is going on.

    Raises:
        EngineError, MeasurementError, ConfigError: See :meth:`~pytest_vllmperf.experiment.Launcher.measure`.
    """
    from pytest_vllmperf.measurement import start_up_summary

    pool, looks = launcher.pool, LAUNCH_LOOKS.within(launches)
    gathered: dict[str, list[Summary]] = {}
    number = 0
    while True:
        number += 1
        pool.renew(name)
        progress(f"{name}: launch {number} of at most {launches} (looks after {', '.join(map(str, looks.at))})")
        handle = pool.acquire(name)
        launcher.look(handle)
        gathered.setdefault("startup", []).append(start_up_summary(handle))
        for what in asked:
            gathered.setdefault(what.name, []).append(launcher.measure_one(handle, what))
            pool.ensure_alive(name)
        found = {key: pooled(summaries, kind="launch") for key, summaries in gathered.items()}
        keep(found)
        if number == launches or (number in looks.at and not undecided(found)):
            return handle
