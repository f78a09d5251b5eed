"""End to end on real vLLM: launch, load, judge, stop. A minute on two CPU cores."""

import importlib.util
import json
from pathlib import Path

import psutil
import pytest
from pytest_command import PYTEST

MODEL = Path(__file__).parents[1] / "suites" / "models" / "tinymath"

pytestmark = [
    pytest.mark.real_vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

CONFTEST = """
from pytest_vllmperf import BUILT_IN_TASKS, EngineConfig, Workload

def pytest_vllmperf_engines(config):
    cpu = {{"enforce-eager": True, "gpu-memory-utilization": 0.3, "max-model-len": 2048}}
    return [
        EngineConfig(name="real", model={model!r}, cpu_args=cpu),
        EngineConfig(name="wrong-flag", model={model!r}, args={{"no-such-flag": 1}}, cpu_args=cpu),
    ]

def pytest_vllmperf_workloads(config):
    return [
        Workload(name="closed", input_tokens=64, output_tokens=32, requests=24, max_concurrency=8),
        Workload(name="open", input_tokens=64, output_tokens=32, requests=20, request_rate=10.0),
        Workload(name="talk", input_tokens=64, output_tokens=32, requests=8, max_concurrency=4, api="chat"),
    ]

def pytest_vllmperf_quality_tasks(config):
    return [BUILT_IN_TASKS["tinymath"]]
"""

SUITE = """
import pytest

@pytest.mark.parametrize("workload", ["closed", "open", "talk"])
def test_speed(vllm_measure, vllm_check, workload):
    vllm_check(vllm_measure(workload), "ttft_mean", "output_throughput")

def test_quality(vllm_evaluate, vllm_quality_task, vllm_check):
    vllm_check(vllm_evaluate(vllm_quality_task), "accuracy")
"""

THRESHOLDS = """
version = 1
[[limit]]
ttft_mean = { max = "60 s" }
output_throughput = { min = "1 tok/s" }
[[limit]]
match = { workload = "tinymath" }
accuracy = { min = "80 %" }
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, request) -> tuple[int, dict, str]:
    """One pytest run in a project of its own; exit code, report.json and terminal output."""
    import subprocess

    project = tmp_path_factory.mktemp("real")
    (project / "conftest.py").write_text(CONFTEST.format(model=str(MODEL)))
    (project / "suites").mkdir()
    (project / "suites" / "test_it.py").write_text(SUITE)
    (project / "thresholds.toml").write_text(THRESHOLDS)
    done = subprocess.run(
        [*PYTEST, "suites/", "-v", "--rootdir", str(project), "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=600,
    )
    output = done.stdout + done.stderr
    path = project / "reports" / "latest" / "report.json"
    assert path.exists(), output
    return done.returncode, json.loads(path.read_text()), output


def metric(report: dict, workload: str, name: str) -> float:
    summary = next(s for s in report["summaries"] if s["engine"] == "real" and s["workload"] == workload)
    return summary["metrics"][name]["value"]


def test_the_good_engine_is_measured_and_judged_and_the_broken_one_makes_the_run_fail(run):
    code, report, output = run
    assert code == 1, output
    judged = {(v["engine"], v["workload"], v["metric"]): v["outcome"] for v in report["verdicts"]}
    for workload in ("closed", "open", "talk"):
        assert judged["real", workload, "ttft_mean"] == "PASS", output
        assert judged["real", workload, "output_throughput"] == "PASS", output
    assert judged["real", "tinymath", "accuracy"] == "PASS", output


def test_a_flag_vllm_does_not_know_is_named_as_the_cause(run):
    _, report, output = run
    states = {e["name"]: e["state"] for e in report["engines"]}
    assert states == {"real": "measured", "wrong-flag": "failed"}
    assert "unrecognized arguments" in output
    assert "no-such-flag" in output


@pytest.mark.parametrize("workload", ["closed", "open", "talk"])
def test_every_request_of_a_healthy_engine_completes_and_its_tokens_agree_with_the_server(run, workload):
    _, report, output = run
    summary = next(s for s in report["summaries"] if s["engine"] == "real" and s["workload"] == workload)
    assert summary["completed"] == summary["requests"] > 0, output
    assert summary["invalid"] == [], output
    assert summary["facts"]["output_tokens"] == 32 * summary["requests"]


def test_all_latencies_are_there_and_ordered(run):
    _, report, _ = run
    for workload in ("closed", "open", "talk"):
        ttft, e2el = metric(report, workload, "ttft_mean"), metric(report, workload, "e2el_mean")
        assert 0 < ttft < e2el
        assert metric(report, workload, "tpot_mean") > 0
        assert metric(report, workload, "host_memory_peak") > 2**28


def test_start_up_is_timed_from_launch_to_the_first_token(run):
    _, report, _ = run
    engine = next(e for e in report["engines"] if e["name"] == "real")
    assert engine["launches"] == 1
    assert engine["version"]


def test_nothing_of_vllm_outlives_the_run(run):
    _, report, _ = run
    engine = next(e for e in report["engines"] if e["name"] == "real")
    command = " ".join(engine["command"])
    alive = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if line == command and process.info["status"] != psutil.STATUS_ZOMBIE:
            alive.append(process.pid)
    assert alive == []
