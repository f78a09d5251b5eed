"""Hand-made streams and measurements for the tests of the pure domain."""

from __future__ import annotations

from dataclasses import replace

from pytest_vllmperf.domain.records import ClientHealth, LoadRun, RequestOutcome, RequestRecord, ServerCounters
from pytest_vllmperf.domain.summary import MetricValue, Summary
from pytest_vllmperf.domain.thresholds import Limit
from pytest_vllmperf.domain.workload import Workload

MS = 1_000_000

CLOSED = Workload(name="closed", input_tokens=4, output_tokens=6, requests=2, max_concurrency=2)
OPEN = Workload(name="open", input_tokens=4, output_tokens=6, requests=2, request_rate=1.0)


def answered(
    *,
    events_ms: tuple[float, ...],
    tokens: tuple[int, ...] | None = None,
    dispatched_ms: float = 0.0,
    written_ms: float | None = None,
    intended_ms: float | None = None,
    output_tokens: int | None = None,
    input_tokens: int | None = 4,
) -> RequestRecord:
    """A complete answer whose events arrived at ``events_ms``, carrying ``tokens`` each."""
    dispatched = round(dispatched_ms * MS)
    events = tuple(round(t * MS) for t in events_ms)
    return RequestRecord(
        index=0,
        outcome=RequestOutcome.SUCCESS,
        status=200,
        intended_ns=dispatched if intended_ms is None else round(intended_ms * MS),
        dispatched_ns=dispatched,
        written_ns=dispatched if written_ms is None else round(written_ms * MS),
        first_byte_ns=events[0] - MS // 2,
        event_ns=events,
        event_tokens=tokens,
        ended_ns=events[-1],
        input_tokens=input_tokens,
        output_tokens=sum(tokens) if output_tokens is None and tokens is not None else output_tokens,
        cached_tokens=None,
        finish_reason="length",
        detail=None,
    )


def failed(outcome: RequestOutcome = RequestOutcome.TIMEOUT, *, detail: str | None = None) -> RequestRecord:
    """A request that came to nothing."""
    empty = answered(events_ms=(1.0,), output_tokens=1)
    return replace(empty, outcome=outcome, event_ns=(), first_byte_ns=None, output_tokens=None, detail=detail)


def load_run(*records: RequestRecord, run_queue_wait_ns: int | None = 0) -> LoadRun:
    """A run of ``records`` by a healthy client."""
    numbered = tuple(replace(r, index=i) for i, r in enumerate(records))
    return LoadRun(
        records=numbered,
        started_ns=0,
        ended_ns=max((r.ended_ns for r in numbered), default=0),
        client=ClientHealth(
            wall_ns=1000 * MS,
            cpu_ns=100 * MS,
            run_queue_wait_ns=run_queue_wait_ns,
            dispatch_lag_p99_ns=0,
            loop="asyncio",
        ),
    )


def counters(**known: float | None) -> ServerCounters:
    """One scrape that publishes only what is given."""
    nothing: dict[str, None] = dict.fromkeys(
        (
            "generation_tokens",
            "prompt_tokens",
            "prefix_cache_hits",
            "prefix_cache_queries",
            "preemptions",
            "kv_cache_usage",
        )
    )
    return ServerCounters(at_ns=0, **{**nothing, **known})


def measured(
    metric: str,
    value: float | None,
    *,
    n: int = 1,
    missing: str | None = None,
    invalid: tuple[str, ...] = (),
    kind: str = "load",
) -> Summary:
    """A summary that holds one metric."""
    return Summary(
        engine="baseline",
        workload="burst",
        kind=kind,
        model="tinymath",
        description="",
        requests=n,
        completed=n,
        failures={},
        duration_s=1.0,
        metrics={metric: MetricValue(name=metric, value=value, n=n, samples=(), missing=missing)},
        invalid=invalid,
        warnings=(),
        facts={},
    )


def limit(
    metric: str,
    *,
    maximum: float | None = None,
    minimum: float | None = None,
    tolerance: float | None = None,
    required: bool = False,
    where: str = "thresholds.toml: limit[1]",
    text: str = "the limit",
) -> Limit:
    """A limit on ``metric``."""
    return Limit(
        metric=metric,
        maximum=maximum,
        minimum=minimum,
        tolerance=tolerance,
        required=required,
        where=f"{where}.{metric}",
        text=text,
    )
