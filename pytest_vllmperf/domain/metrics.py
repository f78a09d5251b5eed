"""The catalogue of metrics: names, units, direction, formula. Nothing else decides these.

A *distribution* (``ttft``) has one sample for each request, gap, … and is judged through its
statistics (``ttft_mean``, ``ttft_p99``). A *scalar* (``output_throughput``) has one value for a run.
"""

from __future__ import annotations

import difflib
import enum
from dataclasses import dataclass

from pytest_vllmperf.errors import UnknownMetric

__all__ = ["METRICS", "STATISTICS", "Better", "Metric", "Statistic", "judgeable_metric", "metric", "register_metric"]


class Better(str, enum.Enum):
    """Which direction is an improvement; ``NEITHER`` metrics are shown, and may have limits both ways."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One way to reduce a distribution.

    ``minimum_samples``: with fewer samples it is shown and never judged. For a percentile it is the
    count from which its upper bound is an observed value rather than an extrapolation. That holds once
    1 - q^n reaches the confidence asked for: 95 % for p90 and p95 (29 and 59, rounded up to tens), and
    for p99 the 99 % of MLPerf's early-stopping rule (459).
    """

    name: str
    quantile: float | None
    minimum_samples: int


STATISTICS: dict[str, Statistic] = {
    s.name: s
    for s in (
        Statistic(name="mean", quantile=None, minimum_samples=1),
        Statistic(name="p50", quantile=0.50, minimum_samples=1),
        Statistic(name="p90", quantile=0.90, minimum_samples=30),
        Statistic(name="p95", quantile=0.95, minimum_samples=60),
        Statistic(name="p99", quantile=0.99, minimum_samples=459),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One catalogue entry.

    Args:
        name: As written in ``thresholds.toml`` and in every report.
        unit: Base unit of its values: ``s``, ``tok/s``, ``req/s``, ``B``, ``ratio``, ``nat``, ``count`` or ``number``.
        better: Direction of an improvement.
        formula: How it is computed, in the terms of ``docs/how-it-works.md``.
        tolerance: Change a comparison accepts by default, as a ratio.
        distribution: True when it has many samples and is judged through statistics.
        family: For a statistic of a distribution, the distribution's name; None otherwise.
        statistic: Which statistic it is; None for scalars and distributions.
    """

    name: str
    unit: str
    better: Better
    formula: str
    tolerance: float
    distribution: bool = False
    family: str | None = None
    statistic: str | None = None

    @property
    def minimum_samples(self) -> int:
        """Samples below which it is shown, not judged."""
        return STATISTICS[self.statistic].minimum_samples if self.statistic else 1

    @property
    def label(self) -> str:
        """The name in prose: ``TTFT p99``, ``output throughput``."""
        return " ".join(w.upper() if w in _ACRONYMS else w for w in self.name.split("_"))


_ACRONYMS = frozenset(("ttft", "ttfb", "itl", "tpot", "e2el", "kv"))


def _distribution(name: str, unit: str, better: Better, tolerance: float, formula: str) -> tuple[Metric, ...]:
    whole = Metric(
        name=name, unit=unit, better=better, tolerance=tolerance, formula=formula, distribution=True, family=name
    )
    parts = (
        Metric(
            name=f"{name}_{s}",
            unit=unit,
            better=better,
            tolerance=tolerance,
            formula=f"{'mean' if s == 'mean' else s.replace('p', '') + 'th percentile'} of {name}: {formula}",
            family=name,
            statistic=s,
        )
        for s in STATISTICS
    )
    return (whole, *parts)


def _scalar(name: str, unit: str, better: Better, tolerance: float, formula: str) -> tuple[Metric, ...]:
    return (Metric(name=name, unit=unit, better=better, tolerance=tolerance, formula=formula),)


_LOW, _HIGH, _NEITHER = Better.LOWER, Better.HIGHER, Better.NEITHER

METRICS: dict[str, Metric] = {
    m.name: m
    for entry in (
        _distribution("ttft", "s", _LOW, 0.15, "first token event - request written (open loop: - intended send)"),
        _distribution("service_ttft", "s", _LOW, 0.15, "first token event - request written"),
        _distribution("ttfb", "s", _LOW, 0.15, "first byte of the body - request written"),
        _distribution(
            "answer_ttft",
            "s",
            _LOW,
            0.15,
            "first event of the answer, after any reasoning - request written (open loop: - intended send)",
        ),
        _distribution("steady_ttft", "s", _LOW, 0.15, "ttft of the requests sent in the steady window"),
        _distribution("steady_tpot", "s", _LOW, 0.05, "tpot of the requests sent in the steady window"),
        _distribution(
            "itl_per_token",
            "s",
            _LOW,
            0.05,
            "each gap between token events / tokens that ended it, once for each token",
        ),
        _distribution("itl", "s", _LOW, 0.05, "gaps between token-carrying events of one request"),
        _distribution(
            "tpot", "s", _LOW, 0.05, "(last - first token event) / (output tokens - tokens in the first event)"
        ),
        _distribution("e2el", "s", _LOW, 0.05, "last token event - request written (open loop: - intended send)"),
        _distribution("service_e2el", "s", _LOW, 0.05, "last token event - request written"),
        _distribution("per_request_throughput", "tok/s", _HIGH, 0.05, "output tokens of a request / its service_e2el"),
        _scalar("output_throughput", "tok/s", _HIGH, 0.05, "output tokens / (last token event - first dispatch)"),
        _scalar(
            "total_throughput", "tok/s", _HIGH, 0.05, "(input + output tokens) / (last token event - first dispatch)"
        ),
        _scalar(
            "steady_output_throughput", "tok/s", _HIGH, 0.05, "output tokens arriving in the steady window / its length"
        ),
        _scalar("request_throughput", "req/s", _HIGH, 0.05, "completed requests / (last token event - first dispatch)"),
        _scalar("peak_output_throughput", "tok/s", _HIGH, 0.05, "output tokens of the best 1 s window / 1 s"),
        _scalar("goodput", "req/s", _HIGH, 0.05, "requests meeting every stated service level / window"),
        _scalar(
            "capacity_rps",
            "req/s",
            _HIGH,
            0.10,
            "largest arrival rate at which 99 % of the requests meet every stated service level, by search",
        ),
        _scalar("error_rate", "ratio", _LOW, 0.0, "failed requests / requests"),
        _scalar("kv_cache_usage_peak", "ratio", _NEITHER, 0.10, "largest kv_cache_usage_perc the server published"),
        _scalar(
            "prefix_cache_hit_rate", "ratio", _HIGH, 0.05, "prompt tokens found in the prefix cache / looked up in it"
        ),
        _scalar("preemptions", "count", _LOW, 0.0, "growth of the server's num_preemptions counter"),
        _scalar(
            "device_memory_peak",
            "B",
            _LOW,
            0.02,
            "largest device memory of the engine's processes; where the driver hides it, in use - in use before launch",
        ),
        _scalar("device_memory_steady", "B", _LOW, 0.02, "median of the same over the measurement"),
        _scalar("host_memory_peak", "B", _LOW, 0.02, "largest proportional set size of the engine's process tree"),
        _scalar("host_memory_steady", "B", _LOW, 0.02, "median of the same over the measurement"),
        _scalar("power_mean", "W", _LOW, 0.05, "mean power of the engine's GPUs during the measurement"),
        _scalar("energy_per_output_token", "J/tok", _LOW, 0.05, "energy the engine's GPUs drew / output tokens"),
        _scalar("sm_clock_ratio", "ratio", _NEITHER, 0.05, "mean multiprocessor clock / its highest, slowest GPU"),
        _scalar("time_to_ready", "s", _LOW, 0.30, "launch until the readiness request streamed its first token"),
        _scalar("first_request_ttft", "s", _LOW, 0.30, "TTFT of the very first request after start"),
        _scalar("time_to_sleep", "s", _LOW, 0.30, "told to sleep until the server said that it does"),
        _scalar("time_to_wake", "s", _LOW, 0.30, "told to wake up until a token was streamed"),
        _scalar("device_memory_asleep", "B", _LOW, 0.05, "device memory in use on the engine's GPUs while it sleeps"),
        _scalar("accuracy", "ratio", _HIGH, 0.05, "right answers / questions, by the task's gated filter"),
        _scalar("accuracy_change", "ratio", _HIGH, 0.05, "accuracy - the reference's, on the same questions"),
        _scalar("kl_mean", "nat", _LOW, 0.5, "mean over tokens of KL(reference || this engine) on given answers"),
        _scalar(
            "top1_agreement", "ratio", _HIGH, 0.02, "tokens of given answers at which both hold the same likeliest"
        ),
        _scalar("perplexity", "number", _LOW, 0.05, "exp(- mean log-probability of the tokens of given answers)"),
    )
    for m in entry
}
"""Every metric by name, statistics included."""


def metric(name: str) -> Metric:
    """Look ``name`` up.

    Raises:
        UnknownMetric: With the nearest names, or all of them.
    """
    try:
        return METRICS[name]
    except KeyError:
        near = difflib.get_close_matches(name, METRICS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(METRICS))}"
        raise UnknownMetric(f"metric {name!r} is unknown; {hint}") from None


def judgeable_metric(name: str) -> Metric:
    """Look up a metric that has one value for a run, as limits need.

    Raises:
        UnknownMetric: Not in the catalogue; or a bare distribution, whose statistics the message lists.
    """
    entry = metric(name)
    if entry.distribution:
        statistics = ", ".join(f"{name}_{s}" for s in STATISTICS)
        raise UnknownMetric(f"metric {name!r} is a distribution; judge one of its statistics: {statistics}")
    return entry


def register_metric(
    *, name: str, unit: str, better: Better, formula: str, tolerance: float = 0.05, distribution: bool = False
) -> None:
    """Add a metric of your own to the catalogue, statistics included for a distribution.

    Raises:
        UnknownMetric: The name is taken by another definition.
    """
    make = _distribution if distribution else _scalar
    for entry in make(name, unit, better, tolerance, formula):
        if METRICS.setdefault(entry.name, entry) != entry:
            raise UnknownMetric(f"metric {entry.name!r} is already in the catalogue; choose another name")
