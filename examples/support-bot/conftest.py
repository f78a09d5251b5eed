"""What the support bot's engine must hold: engine, workload, metrics of its own, and where results go."""

import csv
import os
import shlex

import pytest

from pytest_vllmperf import Better, CustomMetric, EngineConfig, SharedPrefix, Workload

MODEL = os.environ.get("MODEL", "Qwen/Qwen2.5-0.5B-Instruct")
READING_SPEED_TOKENS_PER_S = 6.0  # about 250 words a minute


def pytest_vllmperf_engines(config):
    command = os.environ.get("ENGINE")
    return [
        EngineConfig(
            name="bot",
            model=MODEL,
            args={"max-model-len": 1024, "enable-prefix-caching": True, "max-num-seqs": 16},
            cpu_args={"enforce-eager": True, "gpu-memory-utilization": 0.3},
            command=tuple(shlex.split(command)) if command else None,
        )
    ]


def pytest_vllmperf_workloads(config):
    return [
        Workload(
            name="support-hours",
            prompts=SharedPrefix(tokens=256),
            input_tokens=288,
            output_tokens=48,
            requests=24,
            max_concurrency=4,
        )
    ]


def pytest_vllmperf_metrics(config):
    return [
        CustomMetric(
            name="reads_along",
            unit="ratio",
            better=Better.HIGHER,
            formula="answers that stream at least as fast as people read / answers",
            compute=reads_along,
        ),
        CustomMetric(
            name="greeting_time",
            unit="s",
            better=Better.LOWER,
            formula="whole answer to a greeting, as the bot's own client sees it",
            distribution=True,
            workload="greeting",
        ),
    ]


def reads_along(run):
    """From the raw records: monotonic nanoseconds of every event that carried tokens."""
    answers = [record for record in run.records if record.succeeded and len(record.event_ns) > 1]
    if not answers:
        return None
    in_time = [
        record
        for record in answers
        if record.output_tokens / ((record.event_ns[-1] - record.event_ns[0]) * 1e-9) >= READING_SPEED_TOKENS_PER_S
    ]
    return len(in_time) / len(answers)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def pytest_vllmperf_report(config, report):
    """Hand the results on: here to a spreadsheet."""
    with (config.rootpath / "measured" / "verdicts.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("engine", "workload", "metric", "value", "outcome"))
        table.writerows((v.engine, v.workload, v.metric, v.value, v.outcome.name) for v in report.verdicts)
