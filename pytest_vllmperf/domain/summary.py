"""Records become a Summary: every metric of one run of one workload on one engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytest_vllmperf.domain import rates
from pytest_vllmperf.domain.latencies import distributions
from pytest_vllmperf.domain.latency_split import LatencySplit, latency_split
from pytest_vllmperf.domain.metrics import STATISTICS
from pytest_vllmperf.domain.prefix_cache import PrefixCacheUse
from pytest_vllmperf.domain.records import LoadRun, MemorySample, RequestRecord, ServerCounters
from pytest_vllmperf.domain.self_check import Distortion, distortion
from pytest_vllmperf.domain.stats import reduce_samples
from pytest_vllmperf.domain.steady import SteadyWindow, steady_window
from pytest_vllmperf.domain.timeline import Timeline
from pytest_vllmperf.domain.workload import Workload

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
        kind: What was done: ``load``, ``quality``, ``startup``, ``capacity`` for a search of the largest rate, or
            ``custom`` for what a test recorded itself.
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
    kind: Literal["load", "quality", "startup", "capacity", "custom"]
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
    window_s = rates.window_s(run, done)
    cache = _prefix_cache_use(run, workload, before, after)
    steady = steady_window(run, workload, done)
    samples = distributions(done, open_loop=workload.open_loop, steady=steady.records if steady else ())
    scalars, missing = _scalars(run, done, workload, window_s, steady)
    gauges, ungauged = _gauges(memory, before, during, after, device_memory_missing)
    metrics = metric_values(
        distributions=samples,
        scalars={**scalars, **gauges, "prefix_cache_hit_rate": cache.hit_rate},
        missing={**missing, **ungauged, "prefix_cache_hit_rate": cache.missing},
    )
    client = _distortion(run, done, workload, metrics)
    split = latency_split(run, done, before, after)
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
        metrics={**metrics, **_not_to_be_judged(metrics, client)},
        invalid=(
            *_invalid(run, done),
            *client.invalid,
            *(() if shared_endpoint else _refuted(run, done, cache, before, after)),
        ),
        warnings=_warnings(run, failures, cache, split if not client.invalid else None),
        facts={**_facts(run, done), **split.facts(), **_steady_facts(steady), **cache.facts(), **_client_facts(client)},
    )


def _scalars(
    run: LoadRun,
    done: Sequence[RequestRecord],
    workload: Workload,
    window_s: float | None,
    steady: SteadyWindow | None,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """What has one value for a run, and why what has none."""
    goodput, why_no_goodput = rates.goodput(done, workload.service_level, window_s, open_loop=workload.open_loop)
    peak, why_no_peak = rates.peak_output_throughput(done)
    throughput, why_no_throughput = rates.throughput(done, window_s)
    one_event = "every answer arrived in one event" if done else "no completed request"
    no_usage = any(r.output_tokens is None for r in done) or not done
    failed = sum(not r.succeeded for r in run.records)
    unsteady = "too short to have a steady part" if done else "no completed request"
    scalars = {
        **throughput,
        "peak_output_throughput": peak,
        "goodput": goodput,
        "error_rate": failed / len(run.records) if run.records else None,
        "steady_output_throughput": steady.output_throughput if steady else None,
    }
    missing = {
        **dict.fromkeys(("tpot", "per_request_throughput"), why_no_throughput if no_usage else one_event),
        "itl": one_event,
        "itl_per_token": "the server did not tell the tokens of each event" if done else "no completed request",
        "answer_ttft": "no event carried an answer" if done else "no completed request",
        **dict.fromkeys(throughput, why_no_throughput),
        "peak_output_throughput": why_no_peak,
        "goodput": why_no_goodput,
        **dict.fromkeys(("steady_ttft", "steady_tpot"), unsteady),
        "steady_output_throughput": why_no_throughput if steady else unsteady,
    }
    return scalars, missing


def _distortion(
    run: LoadRun, done: Sequence[RequestRecord], workload: Workload, metrics: Mapping[str, MetricValue]
) -> Distortion:
    names = [f"{latency}_{statistic}" for latency in ("ttft", "tpot") for statistic in ("mean", "p50", "p99")]
    tokens = [r.output_tokens or len(r.event_ns) for r in done]
    return distortion(
        run,
        values={name: metrics[name].value for name in names},
        output_tokens=sum(tokens) / len(tokens) if tokens else 0.0,
        open_loop=workload.open_loop,
    )


def _not_to_be_judged(metrics: Mapping[str, MetricValue], client: Distortion) -> dict[str, MetricValue]:
    """Statistics that the client's own delay may have made: without a value no limit passes them."""
    return {name: replace(metrics[name], value=None, missing=why) for name, why in client.doubtful.items()}


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
        requests=workload.requests if run.stopped else len(run.records),
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
    whole = len(done) == len(run.records) and not run.abandoned
    complete = bool(done) and whole and all(r.output_tokens is not None for r in done)
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


def _warnings(
    run: LoadRun, failures: Counter[str], cache: PrefixCacheUse, split: LatencySplit | None
) -> tuple[str, ...]:
    doubts: list[str] = []
    if failures:
        doubts.append("failed requests: " + ", ".join(f"{n} {name}" for name, n in failures.most_common()))
    if run.stopped is not None:
        given_up = f", {run.abandoned} in flight were given up" if run.abandoned else ""
        doubts.append(f"ended early: {run.stopped}; {run.unsent} requests were not sent{given_up}")
    client = run.client
    if client.run_queue_wait_ns is not None and client.run_queue_wait_ns > _STARVED_SHARE * client.wall_ns:
        share = client.run_queue_wait_ns / client.wall_ns
        so = "it sent late, so throughput may be its own" if client.kernel_stamps else "latencies include its own delay"
        doubts.append(f"the load process waited for a core {share:.0%} of the time: {so}")
    if split is not None and split.api_server_limited:
        doubts.append(split.api_server_limited)
    if cache.planned_hits(block=1) == 0 and any(r.cached_tokens for r in run.records):
        cached = sum(r.cached_tokens or 0 for r in run.records)
        doubts.append(f"{cached} prompt tokens came from the prefix cache")
    return tuple(doubts)


def _facts(run: LoadRun, done: Sequence[RequestRecord]) -> dict[str, object]:
    outputs = [r.output_tokens for r in done if r.output_tokens is not None]
    inputs = [r.input_tokens for r in done if r.input_tokens is not None]
    client = run.client
    return {
        "input_tokens": sum(inputs),
        "output_tokens": sum(outputs),
        "events": sum(len(r.event_ns) for r in done),
        "schedule_hash": run.schedule_hash,
        "unsent": run.unsent,
        "client_workers": client.workers,
        "client_cpu_share": round(client.cpu_ns / max(1, client.wall_ns), 4),
        "client_run_queue_wait_s": _seconds(client.run_queue_wait_ns),
        "client_dispatch_lag_p99_s": _seconds(client.dispatch_lag_p99_ns),
        "client_loop_lag_mean_s": _seconds(client.loop_lag_mean_ns),
        "client_loop_lag_p99_s": _seconds(client.loop_lag_p99_ns),
        "client_shared_reads": round(client.shared_reads, 4),
        "client_loop": client.loop,
        "client_kernel_stamps": client.kernel_stamps,
    }


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else round(ns * _NS, 6)


def _steady_facts(steady: SteadyWindow | None) -> dict[str, object]:
    return {"steady_s": None if steady is None else round(steady.duration_s, 3), "judged_window": _JUDGED}


_JUDGED = "full; limits on steady_* judge the steady window"


def _client_facts(client: Distortion) -> dict[str, object]:
    return {"client_error_estimate": dict(client.errors)}
