"""The Pareto front: configurations that no other one beats in every respect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_vllmperf.domain.metrics import Better

__all__ = ["pareto_front"]


def pareto_front(
    values: Mapping[str, Sequence[float | None]], better: Sequence[Better], *, margin: Sequence[float] | None = None
) -> tuple[str, ...]:
    """Names that nothing dominates, in the order given.

    One dominates another when it is at least as good in every metric and better in one. A name that lacks a value is
    not on the front, and dominates nobody: a missing value is never good.

    Args:
        values: One value for each metric, by name.
        better: The metrics' directions; one that has none counts for nothing.
        margin: Ratio by which one must be better in a metric to count as better, so that noise beats nobody; by
            default any difference counts.
    """
    margins = list(margin) if margin is not None else [0.0] * len(better)
    complete = {name: [v for v in row if v is not None] for name, row in values.items() if None not in row}

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        clearly = False
        for a, b, direction, slack in zip(one, other, better, margins, strict=True):
            if direction is Better.NEITHER:
                continue
            gain = (b - a) if direction is Better.LOWER else (a - b)
            if gain < 0:
                return False
            clearly = clearly or gain > slack * max(abs(a), abs(b))
        return clearly

    return tuple(
        name for name, row in complete.items() if not any(beats(o, row) for n, o in complete.items() if n != name)
    )
