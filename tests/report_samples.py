"""Reports to render: one with every kind of trouble, the same one hostile, and one as large as allowed."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np

from pytest_vllmperf.domain.environment import Environment, Gpu
from pytest_vllmperf.domain.evidence import Evidence
from pytest_vllmperf.domain.report import EngineReport, Report
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Verdict

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


def load(engine, workload, *, n=80, scale=1.0, seed=0, invalid=(), warnings=(), failures=None, **scalars):
    """A load measurement of ``n`` completed requests."""
    failures = failures or {}
    values = {
        "ttft": samples(n, 0.2 * scale, seed),
        "tpot": samples(n, 0.02 * scale, seed + 1),
        "e2el": samples(n, 3.0 * scale, seed + 2),
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
        metrics=metric_values(distributions={}, scalars={"accuracy": 0.75, "error_rate": 0.0}),
        invalid=(),
        warnings=("4 questions leave a score uncertain",),
        facts={"filters": {"strict-match": 0.75}, "rates": {"empty_rate": 0.25, "stop_string_rate": None}},
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
    )


FIXED = ("metric", "kind", "device", "outcome", "state", "source", "started_at")
"""Keys whose values are words of the program's own."""


def with_text(report, change):
    """The report with ``change`` applied to every text in it that is not a word of the program's own."""

    def walk(value, key=None):
        if isinstance(value, dict):
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
