"""Several measurements of one thing as one Summary: pooled samples, and the value of each replicate beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from pytest_vllmperf.domain.metrics import STATISTICS, metric
from pytest_vllmperf.domain.stats import reduce_samples
from pytest_vllmperf.domain.summary import MetricValue, Replicates, Summary
from pytest_vllmperf.errors import ConfigError

__all__ = ["pooled", "split_into_rounds"]


def pooled(summaries: Sequence[Summary], *, kind: Literal["round", "launch"], experiment: str = "") -> Summary:
    """One Summary of several replicates of one measurement.

    Distributions hold the samples of all replicates. A scalar is the largest of them where it is memory or a peak
    share, the sum where it is a count, and else their mean. What makes one replicate worthless makes the whole so:
    leaving it out would be choosing results.

    Raises:
        ConfigError: There is none.
    """
    if not summaries:
        raise ConfigError("nothing to pool: no replicate was measured")
    first, total = summaries[0], len(summaries)
    if total == 1:
        return replace(first, experiment=experiment)
    names = [name for name in first.metrics if all(name in s.metrics for s in summaries)]
    failures: Counter[str] = Counter()
    for summary in summaries:
        failures.update(summary.failures)
    return replace(
        first,
        description=f"{first.description}; {total} {'rounds' if kind == 'round' else 'launches'}",
        requests=sum(s.requests for s in summaries),
        completed=sum(s.completed for s in summaries),
        failures=dict(sorted(failures.items())),
        duration_s=sum(s.duration_s for s in summaries),
        metrics=_metrics(summaries, names),
        invalid=_labelled([s.invalid for s in summaries], kind),
        warnings=_labelled([s.warnings for s in summaries], kind),
        facts=_facts(summaries),
        replicates=_replicates(summaries, names, kind),
        experiment=experiment,
    )


def _metrics(summaries: Sequence[Summary], names: Sequence[str]) -> dict[str, MetricValue]:
    metrics: dict[str, MetricValue] = {}
    for name in names:
        parts, entry = [s.metrics[name] for s in summaries], metric(name)
        if entry.family and not entry.distribution:
            continue  # a statistic: comes with its distribution
        samples = tuple(x for part in parts for x in part.samples)
        missing = next((part.missing for part in parts if part.missing), None)
        if entry.distribution:
            metrics[name] = MetricValue(name=name, value=None, n=len(samples), samples=samples, missing=missing)
            for statistic in STATISTICS:
                value = None if missing else reduce_samples(samples, statistic)
                part = f"{name}_{statistic}"
                metrics[part] = MetricValue(
                    name=part, value=value, n=len(samples), samples=(), missing=None if value is not None else missing
                )
        else:
            values = [part.value for part in parts if part.value is not None]
            value = _scalar(entry.unit, values) if len(values) == len(parts) else None
            n = sum(part.n for part in parts)
            metrics[name] = MetricValue(
                name=name, value=value, n=n, samples=samples, missing=None if value is not None else missing
            )
    return metrics


_PEAKS = ("B",)


def _scalar(unit: str, values: Sequence[float]) -> float:
    if unit in _PEAKS:
        return max(values)
    return sum(values) if unit == "count" else sum(values) / len(values)


def _replicates(summaries: Sequence[Summary], names: Sequence[str], kind: Literal["round", "launch"]) -> Replicates:
    judged = [name for name in names if not metric(name).distribution]
    return Replicates(
        kind=kind,
        count=len(summaries),
        values={name: tuple(s.metrics[name].value for s in summaries) for name in judged},
        samples={name: min(s.metrics[name].n for s in summaries) for name in judged},
    )


def _labelled(texts: Sequence[Sequence[str]], kind: str) -> tuple[str, ...]:
    """Each sentence once, with the replicate it is from; one that holds for all of them stays as it is."""
    found: dict[str, list[int]] = {}
    for number, group in enumerate(texts, start=1):
        for text in group:
            found.setdefault(text, []).append(number)
    return tuple(
        text if len(numbers) == len(texts) else f"{kind} {', '.join(map(str, numbers))}: {text}"
        for text, numbers in found.items()
    )


def _facts(summaries: Sequence[Summary]) -> dict[str, object]:
    """What is equal in all replicates, and a list of the rest."""
    facts: dict[str, object] = {}
    for name in summaries[0].facts:
        values = [s.facts.get(name) for s in summaries]
        facts[name] = values[0] if all(value == values[0] for value in values) else values
    return facts


def split_into_rounds(summary: Summary, rounds: int) -> Summary:
    """The same Summary with its requests divided into ``rounds`` consecutive parts of nearly equal size.

    Batch means: for an open loop, whose requests arrive all through the run whatever the server does, the parts are
    short measurements of the same thing. Only the statistics of distributions get replicates; a scalar of the
    whole run has no parts.
    """
    values: dict[str, tuple[float | None, ...]] = {}
    samples: dict[str, int] = {}
    for name, measured in summary.metrics.items():
        if not metric(name).distribution or len(measured.samples) < 2 * rounds:
            continue
        parts = _parts(measured.samples, rounds)
        for statistic in STATISTICS:
            values[f"{name}_{statistic}"] = tuple(reduce_samples(part, statistic) for part in parts)
            samples[f"{name}_{statistic}"] = min(map(len, parts))
    if not values:
        return summary
    return replace(summary, replicates=Replicates(kind="round", count=rounds, values=values, samples=samples))


def _parts(samples: Sequence[float], parts: int) -> list[Sequence[float]]:
    ends = [round(i * len(samples) / parts) for i in range(parts + 1)]
    return [samples[a:b] for a, b in pairwise(ends)]
