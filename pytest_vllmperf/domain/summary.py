"""Records become a Summary: every metric of one run of one workload on one engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pytest_vllmperf.domain.metrics import METRICS, STATISTICS
from pytest_vllmperf.domain.prefix_cache import PrefixCacheUse
from pytest_vllmperf.domain.records import (
    LoadRun,
    MemorySample,
    RequestRecord,
    ServerCounters,
    time_per_output_token_s,
)
from pytest_vllmperf.domain.stats import peak_window_rate, reduce_samples
from pytest_vllmperf.domain.timeline import Timeline
from pytest_vllmperf.domain.workload import ServiceLevel, Workload

__all__ = ["MetricValue", "Replicates", "Summary", "metric_values", "summarize"]

_NS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One metric of one run.

    ``value`` is in the catalogue's base unit and None when it could not be had; ``missing`` then
    says why. ``n`` counts the samples behind it; ``samples`` holds them for distributions, and the
    one value for scalars.
    """

    name: str
    value: float | None
    n: int
    samples: tuple[float, ...]
    missing: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicates:
    """The values of several rounds of one launch, or of several launches, that a Summary pools.

    Args:
        kind: What was repeated.
        count: How often.
        values: By metric that has one value for a run, one for each replicate; None where it has none.
        samples: The smallest number of samples behind one of those values.
    """

    kind: Literal["round", "launch"]
    count: int
    values: Mapping[str, tuple[float | None, ...]]
    samples: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything measured in one go, and how far it may be believed.

    Args:
        engine: Name of the engine.
        workload: Name of the workload, quality task, or ``startup``.
        kind: What was done: ``load``, ``quality``, ``startup``, or ``custom`` for what a test recorded itself.
        model: The engine's model name, as limits match it.
        description: One line about what was asked.
        requests, completed: Requests (or questions) sent, and answered completely.
        failures: Failed requests by class.
        duration_s: The measured window.
        metrics: Values by metric name; distributions under their own name (with samples and no
            value) and each of their statistics.
        invalid: Reasons why nothing here may be judged; empty for a sound measurement.
        warnings: Doubts that do not forbid judging.
        facts: Small extra figures worth keeping (tokens, client health, …), JSON-ready.
        timeline: A load run over time; None for everything else.
        replicates: Where this pools several rounds or launches, the values of each.
        experiment: The experiment it belongs to, such as ``baseline:max-perf``; empty for an ordinary measurement.
    """

    engine: str
    workload: str
    kind: Literal["load", "quality", "startup", "custom"]
    model: str
    description: str
    requests: int
    completed: int
    failures: Mapping[str, int]
    duration_s: float
    metrics: Mapping[str, MetricValue]
    invalid: tuple[str, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, object]
    timeline: Timeline | None = None
    replicates: Replicates | None = None
    experiment: str = ""


def metric_values(
    *,
    distributions: Mapping[str, Sequence[float]],
    scalars: Mapping[str, float | None],
    missing: Mapping[str, str] | None = None,
) -> dict[str, MetricValue]:
    """Build the ``metrics`` of a Summary: statistics of every distribution, and the scalars.

    ``missing`` gives the reason for scalars and distributions that have no value.
    """
    reasons = missing or {}
    values: dict[str, MetricValue] = {}
    for name, samples in distributions.items():
        kept = tuple(float(s) for s in samples)
        why = reasons.get(name, "no completed request") if not kept else None
        values[name] = MetricValue(name=name, value=None, n=len(kept), samples=kept, missing=why)
        for statistic in STATISTICS:
            value = reduce_samples(kept, statistic)
            reason = None if value is not None else (why or "a sample is not finite")
            values[f"{name}_{statistic}"] = MetricValue(
                name=f"{name}_{statistic}", value=value, n=len(kept), samples=(), missing=reason
            )
    for name, scalar in scalars.items():
        usable = scalar if scalar is not None and math.isfinite(scalar) else None
        values[name] = MetricValue(
            name=name,
            value=usable,
            n=0 if usable is None else 1,
            samples=() if usable is None else (float(usable),),
            missing=None if usable is not None else reasons.get(name, "not measured"),
        )
    return values


def summarize(
    run: LoadRun,
    *,
    engine: str,
    model: str,
    workload: Workload,
    memory: Sequence[MemorySample] = (),
    before: ServerCounters | None = None,
    during: Sequence[ServerCounters] = (),
    after: ServerCounters | None = None,
    device_memory_missing: str = "no GPU",
    shared_endpoint: bool = False,
) -> Summary:
    """Compute every metric of one load run. Only complete, correct answers enter the latencies.

    ``shared_endpoint``: others may use this server too, so its counters are shown and not judged.
    """
    done = [r for r in run.records if r.succeeded]
    failures = Counter(str(r.outcome) for r in run.records if not r.succeeded)
    window_s = _window_s(run, done)
    gauges, missing = _gauges(memory, before, during, after, device_memory_missing)
    cache = _prefix_cache_use(run, workload, before, after)
    goodput, why_no_goodput = _goodput(done, workload.service_level, window_s, open_loop=workload.open_loop)
    peak, why_no_peak = _peak(done)
    throughput, why_no_throughput = _throughput(done, window_s)
    one_event = "every answer arrived in one event" if done else "no completed request"
    tokens_missing = why_no_throughput if any(r.output_tokens is None for r in done) or not done else one_event
    return Summary(
        engine=engine,
        workload=workload.name,
        kind="load",
        model=model,
        description=workload.describe(),
        requests=len(run.records),
        completed=len(done),
        failures=dict(sorted(failures.items())),
        duration_s=window_s or (run.ended_ns - run.started_ns) * _NS,
        metrics=metric_values(
            distributions=_distributions(done, open_loop=workload.open_loop),
            scalars={
                **throughput,
                "peak_output_throughput": peak,
                "goodput": goodput,
                "error_rate": failures.total() / len(run.records) if run.records else None,
                **gauges,
                "prefix_cache_hit_rate": cache.hit_rate,
            },
            missing={
                "tpot": tokens_missing,
                "per_request_throughput": tokens_missing,
                "itl": one_event,
                **dict.fromkeys(throughput, why_no_throughput),
                "peak_output_throughput": why_no_peak,
                "goodput": why_no_goodput,
                **missing,
                "prefix_cache_hit_rate": cache.missing,
            },
        ),
        invalid=_invalid(run, done) + (() if shared_endpoint else _refuted(run, done, cache, before, after)),
        warnings=_warnings(run, failures, cache),
        facts={**_facts(run, done), **cache.facts()},
    )


def _window_s(run: LoadRun, done: Sequence[RequestRecord]) -> float | None:
    """Seconds from the first dispatch to the last token of a completed answer."""
    if not done:
        return None
    first = min(r.dispatched_ns for r in run.records)
    return (max(r.event_ns[-1] for r in done) - first) * _NS


def _distributions(done: Sequence[RequestRecord], *, open_loop: bool) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {
        name: [] for name, m in METRICS.items() if m.distribution and name in _LOAD_DISTRIBUTIONS
    }
    for record in done:
        written = record.written_ns if record.written_ns is not None else record.dispatched_ns
        origin = record.intended_ns if open_loop else written
        first, last = record.event_ns[0], record.event_ns[-1]
        values["ttft"].append((first - origin) * _NS)
        values["service_ttft"].append((first - written) * _NS)
        values["e2el"].append((last - origin) * _NS)
        values["service_e2el"].append((last - written) * _NS)
        if record.first_byte_ns is not None:
            values["ttfb"].append((record.first_byte_ns - written) * _NS)
        values["itl"] += [(b - a) * _NS for a, b in pairwise(record.event_ns)]
        tpot = time_per_output_token_s(record)
        if tpot is not None:
            values["tpot"].append(tpot)
        if record.output_tokens and last > written:
            values["per_request_throughput"].append(record.output_tokens / ((last - written) * _NS))
    return values


_LOAD_DISTRIBUTIONS = frozenset(
    ("ttft", "service_ttft", "ttfb", "itl", "tpot", "e2el", "service_e2el", "per_request_throughput")
)


def _throughput(done: Sequence[RequestRecord], window_s: float | None) -> tuple[dict[str, float | None], str]:
    """Throughputs over the window; token rates are None unless every answer carries usage."""
    if not window_s:
        return dict.fromkeys(("output_throughput", "total_throughput", "request_throughput")), "no completed request"
    outputs = [r.output_tokens for r in done if r.output_tokens is not None]
    inputs = [r.input_tokens for r in done if r.input_tokens is not None]
    output = sum(outputs) / window_s if len(outputs) == len(done) else None
    total = (sum(outputs) + sum(inputs)) / window_s if len(outputs) == len(inputs) == len(done) else None
    rates = {"output_throughput": output, "total_throughput": total, "request_throughput": len(done) / window_s}
    return rates, "the server sent no usage"


def _peak(done: Sequence[RequestRecord]) -> tuple[float | None, str]:
    """The best second. A request whose events carry unknown shares of its tokens counts them evenly spread."""
    if any(r.output_tokens is None for r in done):
        return None, "the server sent no usage"
    at = [t for r in done for t in r.event_ns]
    amounts = [n for r in done for n in r.event_tokens or _spread(r)]
    return peak_window_rate(at, amounts), "shorter than one 1 s window" if done else "no completed request"


def _spread(record: RequestRecord) -> list[float]:
    return [(record.output_tokens or 0) / len(record.event_ns)] * len(record.event_ns)


def _goodput(
    done: Sequence[RequestRecord], level: ServiceLevel | None, window_s: float | None, *, open_loop: bool
) -> tuple[float | None, str]:
    if level is None:
        return None, "the workload states no service level"
    if not window_s:
        return None, "no completed request"
    return sum(_meets(r, level, open_loop=open_loop) for r in done) / window_s, ""


def _meets(record: RequestRecord, level: ServiceLevel, *, open_loop: bool) -> bool:
    """True when a request met every latency asked of it; one that cannot be computed is not met."""
    written = record.written_ns if record.written_ns is not None else record.dispatched_ns
    origin = record.intended_ns if open_loop else written
    measured = (
        (level.ttft_s, (record.event_ns[0] - origin) * _NS),
        (level.tpot_s, time_per_output_token_s(record)),
        (level.e2el_s, (record.event_ns[-1] - origin) * _NS),
    )
    return all(asked is None or (seen is not None and seen <= asked) for asked, seen in measured)


def _gauges(
    memory: Sequence[MemorySample],
    before: ServerCounters | None,
    during: Sequence[ServerCounters],
    after: ServerCounters | None,
    device_memory_missing: str,
) -> tuple[dict[str, float | None], dict[str, str]]:
    host = [s.host_bytes for s in memory if s.host_bytes is not None]
    device = [s.device_bytes for s in memory if s.device_bytes is not None]
    scrapes = [c for c in (before, *during, after) if c is not None]
    usage = [c.kv_cache_usage for c in scrapes if c.kv_cache_usage is not None]
    gauges: dict[str, float | None] = {
        "host_memory_peak": float(max(host)) if host else None,
        "device_memory_peak": float(max(device)) if device else None,
        "kv_cache_usage_peak": max(usage) if usage else None,
        "preemptions": growth(before, after, "preemptions"),
    }
    unpublished = "the server does not publish it"
    missing = {
        "host_memory_peak": "the process tree could not be read",
        "device_memory_peak": device_memory_missing,
        "kv_cache_usage_peak": unpublished,
        "preemptions": unpublished,
    }
    return gauges, missing


def growth(before: ServerCounters | None, after: ServerCounters | None, counter: str) -> float | None:
    """How much a server counter grew between two scrapes.

    None when either lacks it, or when it shrank: the server restarted, and what it counted is lost.
    """
    if before is None or after is None:
        return None
    first, last = getattr(before, counter), getattr(after, counter)
    return None if first is None or last is None or last < first else float(last - first)


def _prefix_cache_use(
    run: LoadRun, workload: Workload, before: ServerCounters | None, after: ServerCounters | None
) -> PrefixCacheUse:
    return PrefixCacheUse(
        workload=workload,
        requests=len(run.records),
        hits=growth(before, after, "prefix_cache_hits"),
        queries=growth(before, after, "prefix_cache_queries"),
        preemptions=growth(before, after, "preemptions"),
        block=None if after is None else after.cache_block_tokens,
    )


def _invalid(run: LoadRun, done: Sequence[RequestRecord]) -> tuple[str, ...]:
    """Reasons that lie in the answers themselves."""
    reasons: list[str] = []
    if not run.records:
        reasons.append("no request was sent")
    elif not done:
        classes = Counter(str(r.outcome) for r in run.records)
        listed = ", ".join(f"{n} {name}" for name, n in classes.most_common())
        detail = next((r.detail for r in run.records if r.detail), None)
        reasons.append(f"0 of {len(run.records)} requests completed ({listed})" + (f": {detail}" if detail else ""))
    without_usage = sum(r.output_tokens is None for r in done)
    if without_usage:
        reasons.append(f"the server sent no usage for {without_usage} of {len(done)} answers: tokens are unknown")
    return tuple(reasons)


def _refuted(
    run: LoadRun,
    done: Sequence[RequestRecord],
    cache: PrefixCacheUse,
    before: ServerCounters | None,
    after: ServerCounters | None,
) -> tuple[str, ...]:
    """Reasons that lie in the server's counters, which nobody else may have moved."""
    reasons = [] if cache.accident is None else [cache.accident]
    generated = growth(before, after, "generation_tokens")
    complete = bool(done) and len(done) == len(run.records) and all(r.output_tokens is not None for r in done)
    if complete and generated is not None:
        counted = sum(r.output_tokens or 0 for r in done)
        if counted != generated:
            reasons.append(
                f"the answers hold {counted} tokens, but the server counted {generated:.0f}: another client is "
                "using this engine, or tokens were lost"
            )
    return tuple(reasons)


_STARVED_SHARE = 0.10
"""Waiting for a core during more than this share of the run makes the client's clock late."""


def _warnings(run: LoadRun, failures: Counter[str], cache: PrefixCacheUse) -> tuple[str, ...]:
    doubts: list[str] = []
    if failures:
        doubts.append("failed requests: " + ", ".join(f"{n} {name}" for name, n in failures.most_common()))
    client = run.client
    if client.run_queue_wait_ns is not None and client.run_queue_wait_ns > _STARVED_SHARE * client.wall_ns:
        share = client.run_queue_wait_ns / client.wall_ns
        doubts.append(f"the load process waited for a core {share:.0%} of the time: latencies include its own delay")
    if cache.planned_hits(block=1) == 0 and any(r.cached_tokens for r in run.records):
        cached = sum(r.cached_tokens or 0 for r in run.records)
        doubts.append(f"{cached} prompt tokens came from the prefix cache")
    return tuple(doubts)


def _facts(run: LoadRun, done: Sequence[RequestRecord]) -> dict[str, object]:
    outputs = [r.output_tokens for r in done if r.output_tokens is not None]
    inputs = [r.input_tokens for r in done if r.input_tokens is not None]
    wait = run.client.run_queue_wait_ns
    return {
        "input_tokens": sum(inputs),
        "output_tokens": sum(outputs),
        "events": sum(len(r.event_ns) for r in done),
        "client_cpu_share": round(run.client.cpu_ns / max(1, run.client.wall_ns), 4),
        "client_run_queue_wait_s": None if wait is None else round(wait * _NS, 6),
        "client_dispatch_lag_p99_s": round(run.client.dispatch_lag_p99_ns * _NS, 6),
        "client_loop": run.client.loop,
    }
