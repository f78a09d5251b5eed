"""What pytest-benchmark's tables say about our metrics: their own units, or nothing at all.

pytest-benchmark knows seconds only, and "lower is better" only:

- Its terminal table leaves our metrics out, because the run's own table shows them with units,
  direction and verdict. With ``--benchmark-compare`` they stay in, and each group's header names the
  true unit. (``--benchmark-histogram`` then draws only those in seconds; it cannot label others.)
- The ``pytest-benchmark compare`` command asks ``./conftest.py`` alone for hooks. Import
  :func:`pytest_benchmark_scale_unit` there for true units; without it everything reads as seconds.
- ``--benchmark-compare-fail`` takes a higher throughput for a regression.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from typing import Any

from pytest_vllmperf.adapters.history.stored import SCHEMA_KEY

__all__ = ["HOOKS_NAME", "hooks", "pytest_benchmark_scale_unit"]

HOOKS_NAME = "vllmperf-history"
_PLURALS = {"B": "byte", "ratio": "ratio", "count": "count"}
"""pytest-benchmark prints "time in {prefix}s": what stands before that s for units that do not end in it."""


def pytest_benchmark_scale_unit(
    config: Any, unit: str, benchmarks: Sequence[Any], best: Any, worst: Any, sort: str
) -> tuple[str, float]:
    """The header's unit of one group: the metric's own, unscaled, where it is not seconds."""
    units = {(bench.get("extra_info") or {}).get("unit", "s") for bench in benchmarks}
    if units == {"s"}:
        of_seconds = importlib.import_module("pytest_benchmark.plugin").pytest_benchmark_scale_unit
        prefix, factor = of_seconds(config=config, unit=unit, benchmarks=benchmarks, best=best, worst=worst, sort=sort)
        return str(prefix), float(factor)
    if unit == "operations":
        return "", 1.0
    if len(units) > 1:
        return "mixed unit", 1.0
    (only,) = units
    return _PLURALS.get(only, only.removesuffix("s")), 1.0


def hooks() -> Any:
    """The hooks of pytest-benchmark this module answers, as a plugin object."""
    from pluggy import HookimplMarker

    hookimpl = HookimplMarker("pytest")

    class Hooks:
        """Stable machine facts, and a terminal table that says nothing wrong about our metrics."""

        @hookimpl
        def pytest_benchmark_scale_unit(
            self, config: Any, unit: str, benchmarks: Sequence[Any], best: Any, worst: Any, sort: str
        ) -> tuple[str, float] | None:
            if all(SCHEMA_KEY not in (bench.get("extra_info") or {}) for bench in benchmarks):
                return None  # ordinary benchmarks: whoever else answers
            return pytest_benchmark_scale_unit(config, unit, benchmarks, best, worst, sort)

        @hookimpl
        def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
            _forget_clock_speed(machine_info)

        @hookimpl(wrapper=True)
        def pytest_benchmark_group_stats(self, config: Any) -> Generator[None, Any, Any]:
            return _groups_shown((yield), config)

    return Hooks()


def _forget_clock_speed(machine_info: dict[str, Any]) -> None:
    """Drop the momentary clock of the CPU: it differs at every start and makes every comparison warn."""
    cpu = machine_info.get("cpu")
    if isinstance(cpu, dict):
        for key in [key for key in cpu if str(key).startswith("hz_")]:
            del cpu[key]


def _groups_shown(groups: Sequence[tuple[Any, list[Any]]], config: Any) -> list[tuple[Any, list[Any]]]:
    comparing = bool(config.getoption("benchmark_compare"))
    drawing = bool(config.getoption("benchmark_histogram"))

    def shown(bench: Any) -> bool:
        info = bench.get("extra_info") or {}
        return SCHEMA_KEY not in info or (comparing and (info["unit"] == "s" or not drawing))

    kept = [(name, [bench for bench in benchmarks if shown(bench)]) for name, benchmarks in groups]
    return [(name, benchmarks) for name, benchmarks in kept if benchmarks]
