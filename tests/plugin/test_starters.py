"""A project of somebody who installed the package: the starter of vllmperf init, and the example beside it."""

import ast
import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_command import PYTEST

import pytest_vllmperf

EXAMPLE = Path(__file__).parents[2] / "examples" / "support-bot"

SMALLER = """

from pytest_vllmperf import Workload

def pytest_vllmperf_workloads(config):
    return [
        Workload(name="single-user", input_tokens=16, output_tokens=8, requests=4, max_concurrency=1),
        Workload(name="burst", input_tokens=16, output_tokens=8, requests=6, max_concurrency=3),
    ]
"""


def init(where, *arguments):
    command = [sys.executable, "-m", "pytest_vllmperf.cli", "init", "-C", str(where), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_starter_measures_and_is_green_only_once_it_has_limits(project):
    told = init(project.path, "--model=fake-model")
    assert [line.split()[1] for line in told.splitlines() if line.startswith("wrote")] == [
        "conftest.py",
        "suites/test_latency.py",
        "suites/test_startup.py",
        "suites/test_throughput.py",
        "thresholds.toml",
    ]
    conftest = project.path / "conftest.py"
    assert 'os.environ.get("MODEL", "fake-model")' in conftest.read_text()
    served_by = f"model=MODEL, command={project.command!r},"
    conftest.write_text(conftest.read_text().replace("model=MODEL,", served_by) + SMALLER)

    first = project.run()
    assert first.ret == 12, first.stdout.str() + first.stderr.str()
    assert project.launches() == {"baseline": 1, "candidate": 1}
    with (project.path / "thresholds.toml").open("a") as limits:
        limits.write('[[limit]]\nmatch = { workload = "burst" }\nttft_mean = { max = "60 s" }\n')
    assert project.run().ret == 0


def test_the_starter_overwrites_nothing(tmp_path):
    (tmp_path / "conftest.py").write_text("mine = True\n")
    told = init(tmp_path, "--json")
    assert json.loads(told)["kept"] == ["conftest.py"]
    assert (tmp_path / "conftest.py").read_text() == "mine = True\n"
    assert (tmp_path / "suites" / "test_latency.py").exists()


def test_a_model_of_any_name_is_written_as_one(tmp_path):
    init(tmp_path, "--model", 'C:\\models\\"odd"')
    tree = ast.parse((tmp_path / "conftest.py").read_text())
    assert 'C:\\models\\"odd"' in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


# ---------------------------------------------------------------------- the example


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, tuple(alias.name for alias in node.names)


def test_the_example_uses_the_public_surface_only():
    for path in EXAMPLE.rglob("*.py"):
        for module, names in imported(ast.parse(path.read_text())):
            assert not module.startswith("pytest_vllmperf."), f"{path}: {module}"
            if module == "pytest_vllmperf":
                assert set(names) <= set(pytest_vllmperf.__all__)


@pytest.mark.parametrize("workers", [(), ("-n1",)])
def test_the_example_runs_and_is_judged(project, workers, monkeypatch):
    if workers:
        pytest.importorskip("xdist")
    bot = project.path / "bot"
    shutil.copytree(EXAMPLE, bot, ignore=shutil.ignore_patterns("measured", ".benchmarks", "__pycache__"))
    monkeypatch.setenv("ENGINE", shlex.join(project.command))
    monkeypatch.setenv("MODEL", "fake-model")
    command = [*(part for part in PYTEST if "anyio" not in part), *workers]
    done = subprocess.run(command, cwd=bot, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((bot / "measured" / "report.json").read_text())
    assert [(e["name"], e["launches"]) for e in report["engines"]] == [("bot", 1)]
    with (bot / "measured" / "verdicts.csv").open() as file:
        outcomes = {row["metric"]: row["outcome"] for row in csv.DictReader(file)}
    assert outcomes == dict.fromkeys(("ttft_mean", "reads_along", "error_rate", "greeting_time_p50"), "PASS")
    (stored,) = (bot / ".benchmarks").glob("*/*.json")
    names = {b["fullname"] for b in json.loads(stored.read_text())["benchmarks"]}
    assert {"bot/support-hours::reads_along", "bot/greeting::greeting_time"} <= names
