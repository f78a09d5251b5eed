"""Reports to render: one with every kind of trouble, the same one hostile, and one as large as allowed."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np

from pytest_vllmperf.domain.environment import Environment, Gpu
from pytest_vllmperf.domain.evidence import Evidence
from pytest_vllmperf.domain.report import EngineReport, Report
from pytest_vllmperf.domain.section import (
    Band,
    Cell,
    Forest,
    ForestRow,
    Line,
    LinePlot,
    Marker,
    Point,
    Scatter,
    Section,
    Table,
)
from pytest_vllmperf.domain.summary import MetricValue, Summary, metric_values
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Verdict
from pytest_vllmperf.domain.timeline import RequestSpan, Series, Timeline

ENVIRONMENT = Environment(
    hardware="NVIDIA H200",
    device="gpu",
    gpus=(Gpu(index=0, uuid="GPU-1", name="NVIDIA H200", memory_bytes=141 * 2**30),),
    driver="570.1",
    cpu="Example CPU",
    cores=16,
    memory_bytes=128 * 2**30,
    platform="Linux-6.1",
    python="3.11.7",
    packages={"vllm": "0.32.0", "torch": "2.13.0"},
    commit="0123456789abcdef",
    dirty=True,
    warnings=("the GPU's power limit is below its default",),
)


def samples(n, scale, seed=0):
    """Latencies with a tail."""
    return (scale * np.random.default_rng(seed).lognormal(0.0, 0.4, n)).tolist()


def evidence(optimisation, state, *, requested=None, value=None, proof="a line of the log"):
    return Evidence(optimisation=optimisation, state=state, value=value, requested=requested, proof=proof, source="log")


EVIDENCE = (
    evidence("prefix caching", "confirmed", requested="on", value="on"),
    evidence("KV cache dtype", "refuted", requested="fp8", value="auto", proof="the cache is in bfloat16"),
    evidence("sleep mode", "refuted", proof="nobody asked"),
)


def engine(name, state="measured", reason=None, log_path=None):
    return EngineReport(
        name=name,
        model="tinymath",
        state=state,
        reason=reason,
        command=() if state == "skipped" else ("python", "-m", "serve", "--port", "1", "--kv-cache-dtype", "fp8"),
        env={"VLLM_USE_V1": "1"},
        version="0.32.0" if state == "measured" else None,
        log_path=log_path,
        launches=0 if state == "skipped" else 1,
        evidence=EVIDENCE if name == "baseline" else (),
        warnings=("the engine's log warns of something",) if name == "baseline" else (),
    )


def over_time(*, requests=40, concurrency=8, duration=12.0, failed=0, seed=0):
    """A closed loop's timeline: a ramp, a steady window, a drain; memory that grows; its slowest requests."""
    random = np.random.default_rng(seed)
    bins = 60
    at = tuple(round(duration * i / bins, 4) for i in range(bins))
    shape = np.clip(np.minimum(np.arange(bins) / 4, (bins - np.arange(bins)) / 6), 0, 1)
    busy = tuple(np.round(concurrency * shape, 2).tolist())
    tokens = tuple(np.round(110.0 * concurrency * shape * random.normal(1, 0.08, bins).clip(0.3), 1).tolist())
    kept = at[::4]
    memory = tuple(float(3 * 2**30 + 2**24 * i) for i in range(len(kept)))
    device = tuple(float(118 * 2**30 + 2**28 * i) for i in range(len(kept)))
    starts = np.sort(random.uniform(0, duration * 0.7, min(20, requests)))
    spans = [
        RequestSpan(
            index=int(i * 2),
            outcome="timeout" if i < failed else "success",
            intended_s=round(float(start), 4),
            sent_s=round(float(start) + 0.002, 4),
            first_token_s=None if i < failed else round(float(start) + 0.2 + 0.4 * random.random(), 4),
            ended_s=round(min(duration, float(start) + 3.0 * (1 + 0.2 * random.random())), 4),
            input_tokens=128,
            output_tokens=None if i < failed else 256,
        )
        for i, start in enumerate(starts)
    ]
    ceiling = 141.0 * 2**30
    return Timeline(
        duration_s=duration,
        series={
            "output_throughput": Series(unit="tok/s", at_s=at, values=tokens, bin_s=duration / bins),
            "concurrency": Series(unit="requests", at_s=at, values=busy, bin_s=duration / bins),
            "host_memory": Series(unit="B", at_s=kept, values=memory),
            "device_memory": Series(unit="B", at_s=kept, values=device, ceiling=ceiling),
            "kv_cache_usage": Series(unit="ratio", at_s=kept, values=tuple(0.02 * i for i in range(len(kept)))),
        },
        slowest=tuple(sorted(spans, key=lambda span: span.intended_s - span.ended_s)),
        steady_s=(0.07 * duration, 0.9 * duration),
    )


def load(engine, workload, *, n=80, scale=1.0, seed=0, invalid=(), warnings=(), failures=None, **scalars):
    """A load measurement of ``n`` completed requests."""
    failures = failures or {}
    values = {
        "ttft": samples(n, 0.2 * scale, seed),
        "tpot": samples(n, 0.02 * scale, seed + 1),
        "e2el": samples(n, 3.0 * scale, seed + 2),
        "service_ttft": samples(n, 0.19 * scale, seed),
        "service_e2el": samples(n, 2.9 * scale, seed + 2),
    }
    requests = n + sum(failures.values())
    return Summary(
        engine=engine,
        workload=workload,
        kind="load",
        model="tinymath",
        description=f"{requests} × 128/256 tokens, 50 at once",
        requests=requests,
        completed=n,
        failures=failures,
        duration_s=12.3,
        metrics=metric_values(
            distributions=values,
            scalars={
                "output_throughput": 900.0 / scale,
                "error_rate": 1 - n / requests if requests else None,
                "device_memory_peak": None,
                **scalars,
            },
            missing={"device_memory_peak": "no GPU"},
        ),
        invalid=invalid,
        warnings=warnings,
        facts={"input_tokens": 6400, "client_loop": "uvloop", "wait_s": 0.25, "ids": list(range(500))},
        timeline=over_time(requests=requests, seed=seed, failed=min(3, sum(failures.values()))) if requests else None,
    )


def quality(engine):
    return Summary(
        engine=engine,
        workload="gsm8k",
        kind="quality",
        model="tinymath",
        description="4 questions, 5 shots, filter strict-match",
        requests=4,
        completed=4,
        failures={},
        duration_s=3.0,
        metrics={
            **metric_values(distributions={}, scalars={"error_rate": 0.0}),
            "accuracy": MetricValue(name="accuracy", value=0.75, n=4, samples=(1.0, 1.0, 1.0, 0.0), missing=None),
        },
        invalid=(),
        warnings=("4 questions leave a score uncertain",),
        facts={
            "filters": {"strict-match": 0.75},
            "rates": {"empty_rate": 0.25, "stop_string_rate": None},
            "examples": [
                {
                    "doc_id": 3,
                    "right": False,
                    "answer": "She sells 16 - 3 - 4 = 9 eggs.\nThe answer is 9.",
                    "read_as": "9",
                    "expected": "18",
                    "finish_reason": "stop",
                },
                {"doc_id": 0, "right": True, "answer": "The answer is 4.", "read_as": "4", "expected": "4"},
            ],
        },
    )


def verdict(summary, metric, outcome, reason, *, maximum=None, minimum=None, text=None):
    value = summary.metrics[metric]
    limit = text and Limit(
        metric=metric,
        maximum=maximum,
        minimum=minimum,
        tolerance=None,
        required=False,
        where=f"thresholds.toml: limit[1].{metric}",
        text=text,
    )
    return Verdict(
        outcome=outcome,
        engine=summary.engine,
        workload=summary.workload,
        metric=metric,
        value=value.value,
        n=value.n,
        limit=limit or None,
        reason=reason,
    )


SECTION = Section(
    id="gate",
    title="max-perf against baseline",
    sentences=("Throughput −29 % [−31 %, −27 %] at heavy load; TTFT mean +16 % [−2 %, +37 %].",),
    tables=(
        Table(
            title="Four pairs of launches, ABBA",
            head=("Metric", "baseline", "max-perf", "Change", "Verdict"),
            right=("baseline", "max-perf", "Change"),
            rows=(
                (
                    "output_throughput",
                    Cell(text="11 343 tok/s", value=11343.0, measurement=("baseline", "burst")),
                    "7 524 tok/s",
                    Cell(text="−29 %", value=-0.29, kind="worse"),
                    Cell(text="FAIL", kind="fail"),
                ),
                ("tpot_mean", "4.78 ms", "4.89 ms", "+2.3 %", Cell(text="PASS", kind="pass")),
            ),
            note="Intervals at 95 %.",
        ),
    ),
    forests=(
        Forest(
            title="Change of max-perf against baseline",
            tolerance=0.05,
            rows=(
                ForestRow(label="output_throughput", estimate=-0.29, low=-0.31, high=-0.27, kind="fail", text="FAIL"),
                ForestRow(
                    label="ttft_mean", estimate=0.16, low=-0.02, high=0.37, kind="inconclusive", text="INCONCLUSIVE"
                ),
                ForestRow(label="tpot_mean", estimate=0.023, low=0.011, high=0.035, kind="pass", text="PASS"),
                ForestRow(label="host_memory_peak", estimate=0.0, low=0.0, high=0.0, kind="pass", text="PASS"),
            ),
        ),
    ),
    scatters=(
        Scatter(
            title="burst",
            x_label="output throughput",
            y_label="TTFT mean",
            x_unit="tok/s",
            y_unit="s",
            x_better="higher",
            y_better="lower",
            points=(
                Point(label="baseline", x=8110.0, y=0.185, front=True),
                Point(label="max-perf", x=6670.0, y=0.519),
                Point(label="fp8", x=8900.0, y=0.24, front=True),
            ),
        ),
    ),
    lines=(
        LinePlot(
            title="TTFT mean of baseline × burst",
            y_unit="s",
            from_zero=False,
            x_names=tuple(f"12-{day:02}" for day in range(1, 21)),
            lines=(
                Line(
                    name="baseline",
                    x=tuple(float(i) for i in range(20)),
                    y=tuple(0.2 + (0.02 if i > 13 else 0.0) + 0.002 * (i % 3) for i in range(20)),
                    low=tuple(0.19 + (0.02 if i > 13 else 0.0) for i in range(20)),
                    high=tuple(0.212 + (0.02 if i > 13 else 0.0) for i in range(20)),
                    dots=True,
                ),
            ),
            markers=(Marker(text="+9.8 % since 12-15", x=14.0, kind="fail"),),
        ),
        LinePlot(
            title="goodput by request rate",
            x_unit="req/s",
            y_unit="req/s",
            lines=(
                Line(name="baseline", x=(1.0, 2.0, 4.0, 8.0), y=(1.0, 2.0, 3.9, 5.1), dots=True),
                Line(name="max-perf", x=(1.0, 2.0, 4.0, 8.0), y=(1.0, None, 3.7, 4.4), dots=True),
            ),
            markers=(Marker(text="limit", y=4.0),),
            bands=(Band(start=3.5, end=4.5, text="knee"),),
        ),
    ),
    notes=("What this does not say: anything about other hardware.",),
    kind="fail",
)


def troubled(log_folder="reports/latest/logs"):
    """A run in which nothing is missing: passes, failures, a broken, a crashed and a skipped part."""
    baseline = load("baseline", "burst", failures={"timeout": 3, "http_error": 1}, warnings=("failed requests: 4",))
    faster = load("max-perf", "burst", scale=0.7, seed=5)
    broken = load("max-perf", "heavy", n=0, failures={"timeout": 50}, invalid=("0 of 50 requests completed",))
    asked = quality("baseline")
    return Report(
        started_at="2026-01-02T03:04:05+00:00",
        duration_s=192.4,
        environment=ENVIRONMENT,
        engines=(
            engine("baseline", log_path=f"{log_folder}/baseline.log"),
            engine("max-perf", log_path="/elsewhere/max-perf.log"),
            engine("broken", "failed", "exit code 1: unrecognized arguments: --no-such-flag\nsecond line"),
            engine("offload", "skipped", "requires a GPU with 40 GiB"),
        ),
        summaries=(baseline, faster, broken, asked),
        verdicts=(
            verdict(baseline, "ttft_mean", Outcome.FAIL, "TTFT mean exceeds it", maximum=0.1, text="≤ 100 ms"),
            verdict(baseline, "ttft_p90", Outcome.PASS, "TTFT p90 meets it", maximum=60.0, text="≤ 60 s"),
            verdict(baseline, "ttft_p99", Outcome.NOT_JUDGED, "needs 459", maximum=2.0, text="≤ 2 s"),
            verdict(baseline, "output_throughput", Outcome.PASS, "meets it", minimum=500.0, text="≥ 500 tok/s"),
            verdict(faster, "ttft_mean", Outcome.PASS, "meets it", maximum=0.6, text="≤ 600 ms"),
            verdict(faster, "tpot_p95", Outcome.INCONCLUSIVE, "too few samples", maximum=0.6, text="≤ 600 ms"),
            verdict(broken, "ttft_mean", Outcome.INVALID, "0 of 50 requests completed"),
            verdict(broken, "tpot_mean", Outcome.INVALID, "0 of 50 requests completed"),
            verdict(asked, "accuracy", Outcome.PASS, "accuracy meets it", minimum=0.7, text="≥ 70 %"),
        ),
        problems=("thresholds.toml: limit[4].accuracy applies here, but accuracy was never judged",),
        exit_code=1,
        sections=(SECTION,),
    )


FIXED = ("metric", "kind", "device", "outcome", "state", "source", "started_at", "unit", "x_better", "y_better", "id")
"""Keys whose values are words of the program's own."""


def with_text(report, change):
    """The report with ``change`` applied to every text in it that is not a word of the program's own."""

    def walk(value, key=None):
        if isinstance(value, dict):
            if key == "series":
                return {change(name): walk(series) for name, series in value.items()}
            if key == "metrics":
                return {name: {**v, "missing": v["missing"] and change(v["missing"])} for name, v in value.items()}
            free = key in ("facts", "failures", "packages", "filters", "rates")
            return {change(k) if free else k: walk(v, k) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(item, key) for item in value]
        return change(value) if isinstance(value, str) and key not in FIXED else value

    return msgspec.convert(walk(msgspec.to_builtins(report)), Report)


OTHER_FAMILIES = ("service_ttft", "ttfb", "itl", "service_e2el", "per_request_throughput")
OTHER = {
    "total_throughput": 1234.5,
    "request_throughput": 3.21,
    "peak_output_throughput": 2345.6,
    "goodput": 3.1,
    "host_memory_peak": 2.0**31,
    "kv_cache_usage_peak": 0.123,
    "preemptions": 0.0,
}


def large(*, engines=50, workloads=10, requests=1000):
    """As large as the page must bear, with limits on what people look at."""
    measured = [load(f"engine-{e}", "", n=requests, scale=1 + e / 50, seed=10 * e, **OTHER) for e in range(engines)]
    others = metric_values(distributions=dict.fromkeys(OTHER_FAMILIES, samples(requests, 0.1)), scalars={})
    summaries = tuple(
        replace(summary, workload=f"workload-{w}", metrics={**summary.metrics, **others})
        for summary in measured
        for w in range(workloads)
    )
    judged = ("ttft_mean", "ttft_p50", "ttft_p99", "tpot_mean", "tpot_p99", "e2el_mean", "output_throughput")
    return Report(
        started_at="2026-01-02T03:04:05+00:00",
        duration_s=9e4,
        environment=ENVIRONMENT,
        engines=tuple(engine(f"engine-{e}") for e in range(engines)),
        summaries=summaries,
        verdicts=tuple(
            verdict(s, name, Outcome.PASS, f"{name} 123 ms meets ≤ 9 s", maximum=9.0, text="≤ 9 s")
            for s in summaries
            for name in judged
        ),
        problems=(),
        exit_code=0,
    )


def past_run(report, *, day=1, factor=1.0, hardware=None, model=None, invalid=()):
    """An earlier run as the history gives it, with every value ``factor`` times today's."""
    return SimpleNamespace(
        datetime=f"2025-12-{day:02}T00:00:00",
        metrics=[
            SimpleNamespace(
                metric=value.name,
                engine=summary.engine,
                workload=summary.workload,
                samples=tuple(factor * sample for sample in value.samples),
                extra_info={
                    "hardware": hardware or report.environment.hardware,
                    "model": model or summary.model,
                    "invalid": list(invalid),
                },
            )
            for summary in report.summaries
            for value in summary.metrics.values()
            if value.samples
        ],
    )
