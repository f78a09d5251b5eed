import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = {
    "false_fail_base",
    "false_fail_worst",
    "power_5",
    "power_10",
    "launches_null",
    "launches_5",
    "coverage_p50",
    "coverage_p95",
    "coverage_p99",
    "judge_ms",
}


@pytest.fixture(scope="module")
def output() -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "verdict_simulation.py"), "--scale", "0.001"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_last_line_is_one_object_with_every_figure(output: str) -> None:
    figures = json.loads(output.splitlines()[-1])
    assert set(figures) == KEYS
    assert all(isinstance(value, (int, float)) for value in figures.values())
    assert all(0 <= figures[key] <= 1 for key in KEYS - {"launches_null", "launches_5", "judge_ms"})
    assert 8 <= figures["launches_null"] <= 20


def test_the_rivals_stand_beside_the_false_fails(output: str) -> None:
    head = next(line for line in output.splitlines() if line.startswith("| scenario"))
    assert all(rival in head for rival in ("`mean:5%`", "Mann-Whitney, requests", "benchstat 8+8"))
