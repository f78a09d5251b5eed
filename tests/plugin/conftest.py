"""A small project with fake engines, written into a temporary directory and run in a pytest of its own."""

import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pytest_command import PLAIN

CONFTEST = """
import pytest
from pytest_vllmperf import EngineConfig, Workload

COMMAND = {command!r}
ENGINES = {engines!r}
CPU = {cpu!r}

@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_benchmark_generate_machine_info():
    import cpuinfo
    cpuinfo.get_cpu_info = lambda: CPU  # this machine's, asked for once for all projects: it takes 0.15 s

def pytest_vllmperf_engines(config):
    return [EngineConfig(**{{"model": "fake-model", "command": COMMAND, **engine}}) for engine in ENGINES]

def pytest_vllmperf_workloads(config):
    return [Workload(name="tiny", input_tokens=16, output_tokens=8, requests=6, max_concurrency=3)]
"""

SUITE = """
def test_first_token(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean", "ttft_p99")

def test_throughput(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "output_throughput")
"""

GENEROUS = """
version = 1
[[limit]]
ttft_mean = { max = "60 s" }
output_throughput = { min = "0.001 tok/s" }
"""


class Project:
    """The temporary project: write it, run pytest in it, read what it left behind."""

    def __init__(self, pytester: pytest.Pytester, command: tuple[str, ...], cpu: Mapping[str, object]) -> None:
        self.cpu = dict(cpu)
        self.pytester = pytester
        self.command = command
        self.path = pytester.path

    def write(
        self,
        *,
        engines: list[dict[str, object]] | None = None,
        suite: str = SUITE,
        thresholds: str | None = GENEROUS,
        files: Mapping[str, str] | None = None,
    ) -> None:
        engines = [{"name": "one"}] if engines is None else engines
        (self.path / "conftest.py").write_text(CONFTEST.format(command=self.command, engines=engines, cpu=self.cpu))
        (self.path / "suites").mkdir(exist_ok=True)
        (self.path / "suites" / "test_it.py").write_text(textwrap.dedent(suite))
        if thresholds is not None:
            (self.path / "thresholds.toml").write_text(textwrap.dedent(thresholds))
        for name, content in (files or {}).items():
            (self.path / name).write_text(textwrap.dedent(content))

    def run(self, *args: str, suites: str = "suites/") -> pytest.RunResult:
        return self.pytester.runpytest_subprocess(suites, *PLAIN, *args)

    @property
    def report(self) -> dict:
        return json.loads((self.path / "reports/latest/report.json").read_text())

    @property
    def history(self) -> list[Path]:
        return sorted((self.path / ".benchmarks").rglob("*.json"))

    def launches(self) -> dict[str, int]:
        return {engine["name"]: engine["launches"] for engine in self.report["engines"]}


@pytest.fixture(scope="session")
def cpu() -> Mapping[str, object]:
    """What pytest-benchmark notes of this machine's CPU."""
    import cpuinfo

    return cpuinfo.get_cpu_info()


@pytest.fixture
def project(
    pytester: pytest.Pytester,
    fake_command: tuple[str, ...],
    cpu: Mapping[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    for variable in ("CI", "MODEL", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(variable, raising=False)
    return Project(pytester, fake_command, cpu)


@pytest.fixture
def verdict_of() -> Callable[[dict, str], str]:
    """The outcome of one metric in a report, whatever the engine."""

    def find(report: dict, metric: str) -> str:
        return next(v["outcome"] for v in report["verdicts"] if v["metric"] == metric)

    return find
