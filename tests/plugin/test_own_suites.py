"""What other people's suites use: metrics of their own, async tests, and what pytest says of fixtures and options."""

import json
import re
import subprocess
import sys

import pytest
from pytest_command import PLAIN

METRICS = """
from pytest_vllmperf import Better, CustomMetric

def events(run):
    return [len(record.event_ns) for record in run.records]

def broken(run):
    raise ZeroDivisionError("of no use")

def pytest_vllmperf_metrics(config):
    return [
        CustomMetric(name="events", unit="count", better=Better.HIGHER, formula="events of a request",
                     distribution=True, compute=events),
        CustomMetric(name="broken_ratio", unit="ratio", better=Better.LOWER, formula="nothing", compute=broken),
        CustomMetric(name="wake_time", unit="s", better=Better.LOWER, formula="wake to first token", workload="waking"),
    ]
"""

SUITE = """
import numpy as np

def test_events(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "events_mean", "broken_ratio")

def test_wake(vllm_record, vllm_check):
    vllm_check(vllm_record(wake_time=np.float64(0.8)), "wake_time")
"""

LIMITS = """
version = 1
[[limit]]
match = { workload = "tiny" }
events_mean = { min = "1" }
[[limit]]
match = { workload = "waking" }
wake_time = { max = "500 ms" }
"""


def test_metrics_of_ones_own_get_limits_history_and_a_place_in_the_report(project):
    project.write(suite=SUITE, thresholds=LIMITS, files={"own.py": METRICS})
    result = project.run("-p", "own")
    assert result.ret == 1, result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(["*FAIL: wake time 800 ms exceeds ≤ 500 ms by 60 % ?thresholds.toml: limit*wake_time?"])
    verdicts = {v["metric"]: v for v in project.report["verdicts"]}
    assert verdicts["events_mean"]["outcome"] == "PASS"
    assert verdicts["broken_ratio"]["outcome"] == "NOT JUDGED"
    values = project.report["summaries"][0]["metrics"]
    assert values["broken_ratio"]["missing"] == "its compute raised ZeroDivisionError: of no use"
    (path,) = project.history
    stored = {b["fullname"]: b["extra_info"] for b in json.loads(path.read_text())["benchmarks"]}
    assert stored["one/tiny::events"]["better"] == "higher"
    assert stored["one/waking::wake_time"]["unit"] == "s"
    merge = [sys.executable, "-m", "pytest_vllmperf.cli", "merge", "reports/latest"]
    merged = subprocess.run(merge, cwd=project.path, capture_output=True, text=True, timeout=60)
    assert merged.returncode == 1, merged.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("vllm_record(wake_tme=1)", "metric 'wake_tme' cannot be recorded: pytest_vllmperf_metrics defines events, "),
        ("vllm_record(wake_time=[1, 2])", "metric 'wake_time' has one value: give a number, not [1, 2]"),
        ("vllm_record(events=3)", "metric 'events' is a distribution: give all of its samples, not 3"),
        ("vllm_record(events=[3], wake_time=1)", "metrics of 'custom' and 'waking': record them apart"),
    ],
)
def test_what_cannot_be_recorded_is_told(project, call, message):
    project.write(suite=f"def test_it(vllm_record):\n    {call}\n", thresholds=LIMITS, files={"own.py": METRICS})
    result = project.run("-p", "own")
    assert result.ret == 1
    assert message in result.stdout.str()


ASYNC = """
import asyncio
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_directly(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")

@pytest.mark.anyio
async def test_beside_other_work(vllm_measure, vllm_check):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    summary = await asyncio.to_thread(vllm_measure, "other")
    ticking.cancel()
    assert ticks > 1
    vllm_check(summary, "output_throughput")

@pytest.mark.anyio
async def test_wrong(vllm_measure):
    vllm_measure("no-such-workload")
"""

MORE = """
from pytest_vllmperf import Workload

def pytest_vllmperf_workloads(config):
    return [Workload(name="other", input_tokens=16, output_tokens=8, requests=4, max_concurrency=2)]
"""


def test_async_tests_can_use_every_fixture(project):
    project.write(suite=ASYNC, files={"more.py": MORE})
    result = project.pytester.runpytest_subprocess(
        "suites/", "-pno:randomly", "-pno:hypothesispytest", "-p", "more", "--vllmperf-record-only"
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*workload 'no-such-workload' is unknown; known: *"])
    assert {s["workload"] for s in project.report["summaries"]} == {"tiny", "other"}


# ---------------------------------------------------------------------- what pytest says of us


def test_fixtures_markers_and_help_read_well(project):
    project.write()
    fixtures = project.run("--fixtures", suites="suites/test_it.py").stdout.str()
    for name in ("vllm_engine", "vllm_measure", "vllm_evaluate", "vllm_check", "vllm_record", "vllm_start_up"):
        found = re.search(rf"^{name}\b.*?-- [^\n]*fixtures.py:\d+\n    (\S[^\n]*)", fixtures, re.MULTILINE)
        assert found, name
        assert "no docstring" not in found[1]
    markers = project.run("--markers").stdout.str()
    assert "@pytest.mark.vllm_engine(*names): " in markers
    assert "@pytest.mark.vllm_workload(*names): " in markers
    text = project.run("--help").stdout.str()
    options = text[text.index("vLLM performance, memory and quality gates:") :].partition("\n\n")[0]
    for name in ("engine", "workload", "quick", "reuse", "thresholds", "report-dir", "record-only", "share-cpu"):
        assert f"  --vllmperf-{name}" in options
    assert "vllmperf_report_dir (string):" in text


def test_a_project_without_engines_sees_nothing_of_the_plugin(pytester):
    pytester.makepyfile(test_it="def test_it():\n    pass\n")
    before = set(pytester.path.iterdir())
    result = pytester.runpytest_subprocess(*PLAIN, "-pno:cacheprovider", "-v")
    result.assert_outcomes(passed=1)
    told = [line for line in result.stdout.lines if "vllmperf" in line and not line.startswith("plugins:")]
    assert [line for line in told if str(pytester.path) not in line] == []
    left = {path.name for path in set(pytester.path.iterdir()) - before}
    assert {name for name in left if not name.startswith(("runpytest-", "__pycache__", "std", ".benchmarks"))} == set()
