"""Measurements of a load for tests that only care about a few of their values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_vllmperf.domain.summary import Summary, metric_values


def load_summary(
    *,
    distributions: Mapping[str, Sequence[float]],
    scalars: Mapping[str, float | None],
    requests: int = 10,
    **changes: object,
) -> Summary:
    """Engine ``e`` under workload ``w``, all ``requests`` completed, without doubts; ``changes`` replace fields."""
    summary = Summary(
        engine="e",
        workload="w",
        kind="load",
        model="m",
        description="w",
        requests=requests,
        completed=requests,
        failures={},
        duration_s=2.0,
        metrics=metric_values(distributions=distributions, scalars=scalars),
        invalid=(),
        warnings=(),
        facts={},
    )
    return replace(summary, **changes)  # type: ignore[arg-type]
