"""How the reader of the limits file puts things: what is allowed, which key fits, a limit as it was written."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from pytest_vllmperf.domain.metrics import Better, Metric
from pytest_vllmperf.domain.units import format_quantity, parse_quantity

__all__ = ["as_text", "nearest", "right_key"]


def right_key(metric: Metric) -> str:
    """The bound that fits a metric's direction."""
    return {Better.LOWER: "max", Better.HIGHER: "min", Better.NEITHER: "max, min"}[metric.better]


def as_text(options: Mapping[str, object], metric: Metric) -> str:
    """The limit as written, for messages: ``≤ 600 ms``."""
    units = {"min": metric.unit, "max": metric.unit, "tolerance": "ratio"}
    written = {key: _as_written(options[key], unit) for key, unit in units.items() if key in options}
    bounds = [f"{sign} {written[key]}" for key, sign in (("min", "≥"), ("max", "≤")) if key in written]
    return " and ".join(bounds) or f"tolerance {written['tolerance']}"


def _as_written(value: object, unit: str) -> str:
    """A string as it is; a bare number formatted, unless that would round it."""
    if not isinstance(value, (int, float)):
        return " ".join(str(value).split())
    shown = format_quantity(value, unit=unit)
    return shown if parse_quantity(shown, unit=unit) == value else repr(value)


def nearest(given: str, allowed: Collection[str]) -> str:
    """What is allowed, the nearest first."""
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    rest = [*near, *(name for name in allowed if name not in near)]
    return f"{hint}allowed: {', '.join(rest) or 'none'}"
