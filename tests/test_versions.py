"""Four versions of vLLM in one matrix, each in an environment of its own (`make test-versions`; minutes)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_command import PYTEST

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "suites" / "models" / "tinymath"
VERSIONS = ("0.14.0", "0.20.2", "0.31.0", "0.32.0")

pytestmark = pytest.mark.versions

CONFTEST = """
from pytest_vllmperf import EngineConfig, Workload

def pytest_vllmperf_engines(config):
    cpu = {{"enforce-eager": True, "gpu-memory-utilization": 0.3, "max-model-len": 2048, "max-num-seqs": 8}}
    offload = {{"kv-offloading-backend": "native", "kv-offloading-size": 1}}
    engines = [
        EngineConfig(name=name, model={model!r}, python=python, cpu_args=cpu | {{"enable-prefix-caching": True}})
        for name, python in {pythons!r}.items()
    ]
    seed = EngineConfig(name="offload-0.14.0", model={model!r}, python={pythons!r}["v0.14.0"], cpu_args=cpu | offload)
    return [*engines, seed]

def pytest_vllmperf_workloads(config):
    return [Workload(name="tiny", input_tokens=64, output_tokens=16, requests=8, max_concurrency=4)]
"""

SUITE = """
def test_speed(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict, str]:
    """The report of one run over all versions, and its terminal output."""
    pythons = {
        f"v{version}": sys.executable if version == "0.32.0" else str(ROOT / f".venv-{version}" / "bin" / "python")
        for version in VERSIONS
    }
    for python in pythons.values():
        assert Path(python).exists(), f"{python} is missing: run make test-versions"
    project = tmp_path_factory.mktemp("versions")
    (project / "conftest.py").write_text(CONFTEST.format(model=str(MODEL), pythons=pythons))
    (project / "test_it.py").write_text(SUITE)
    (project / "thresholds.toml").write_text('version = 1\n[[limit]]\nttft_mean = { max = "60 s" }\n')
    done = subprocess.run(
        [*PYTEST, "-v", "--rootdir", str(project), "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=900,
    )
    path = project / "reports" / "latest" / "report.json"
    output = done.stdout + done.stderr
    print(output)
    assert path.exists(), output
    return json.loads(path.read_text()), output


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_launched_measured_and_told_by_its_own_number(run, version):
    report, output = run
    engine = next(e for e in report["engines"] if e["name"] == f"v{version}")
    assert engine["state"] == "measured", output
    assert engine["version"].startswith(version)
    (summary,) = (s for s in report["summaries"] if s["engine"] == f"v{version}" and s["workload"] == "tiny")
    assert summary["completed"] == summary["requests"] == 8
    assert summary["invalid"] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_each_versions_log_proves_what_was_asked_for(run, version):
    report, _ = run
    engine = next(e for e in report["engines"] if e["name"] == f"v{version}")
    states = {item["optimisation"]: item["state"] for item in engine["evidence"]}
    assert states["V1 engine"] == "confirmed"
    assert states["prefix caching"] == "confirmed"
    assert states["CUDA graphs"] == states["compilation"] == "refuted"


def test_offloading_on_0_14_fails_over_hma_and_says_what_to_do(run):
    report, output = run
    engine = next(e for e in report["engines"] if e["name"] == "offload-0.14.0")
    assert engine["state"] == "failed", output
    assert "does not support HMA but HMA is enabled" in engine["reason"]
    assert "disable-hybrid-kv-cache-manager" in engine["reason"]
