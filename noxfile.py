"""Compatibility: the plugin's own seams on every supported pytest, pytest-benchmark, pytest-xdist and Python.

The corners (oldest and newest, with and without workers) run every test of the seams, what lies between a core of them.
``make test-compat`` runs all, ``nox -s "compat(3.11, pytest 8.4, benchmark 5.0, no xdist)"`` one of them. Neither vLLM
nor a GPU is needed.
"""

import os
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True

SEAMS = (
    "tests/plugin/test_joined_results.py",
    "tests/plugin/test_outputs.py",
    "tests/plugin/test_selection.py",
    "tests/plugin/test_usage.py",
    "tests/plugin/test_verdicts.py",
    "tests/plugin/test_xdist.py",
    "tests/adapters/test_benchmark_storage.py",
    "tests/adapters/test_history.py",
    "tests/unit/test_scheduling.py",
)
"""All that meets pytest, pytest-benchmark and pytest-xdist: run at the corners."""
CORE = (
    "tests/plugin/test_selection.py::test_history_is_kept_by_hardware_with_a_fingerprint",
    "tests/plugin/test_selection.py::test_an_interrupted_run_is_stored_and_is_no_baseline",
    "tests/plugin/test_usage.py::test_collect_only_launches_nothing_and_writes_nothing",
    "tests/plugin/test_verdicts.py::test_a_missed_limit_fails_its_test_and_names_value_limit_and_place",
    "tests/plugin/test_verdicts.py::test_zero_completed_requests_is_invalid_and_exit_code_10",
    "tests/plugin/test_verdicts.py::test_nothing_judged_is_exit_code_12_and_says_why",
    "tests/adapters/test_benchmark_storage.py",
    "tests/adapters/test_history.py",
)
"""What breaks first where one of them changes: run everywhere."""
CORE_XDIST = tuple(
    f"tests/plugin/test_xdist.py::{test}"
    for test in (
        "test_four_engines_are_launched_once_each_in_whatever_order_their_tests_come[3-3]",
        "test_a_crashed_worker_loses_the_test_in_flight_and_relaunches_its_engine_once",
        "test_results_are_the_same_with_and_without_workers",
        "test_an_internal_error_of_a_worker_is_never_green",
        "test_tests_without_engines_may_use_any_mode_and_are_not_gated",
    )
)
PYTESTS = ("8.4", "9.0", "9.1", "9.2")
BENCHMARKS = ("5.0", "5.3")
NEWEST = (PYTESTS[-1], BENCHMARKS[-1], True)
COMBINATIONS = [("3.11", p, b, x) for p in PYTESTS for b in BENCHMARKS for x in (True, False)]
COMBINATIONS += [(python, *NEWEST) for python in ("3.10", "3.12", "3.13")]


CORNERS = [("3.11", PYTESTS[i], BENCHMARKS[i], xdist) for i in (0, -1) for xdist in (True, False)]


def interpreter(version: str) -> str:
    """The interpreter of that version on PATH, else the newest that pyenv has."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted((root / "versions").glob(f"{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}") or version


def name(python: str, pytest: str, benchmark: str, xdist: bool) -> str:
    """How a combination is called."""
    return f"{python}, pytest {pytest}, benchmark {benchmark}, {'xdist' if xdist else 'no xdist'}"


@nox.session
@nox.parametrize(
    ("python", "pytest", "benchmark", "xdist"),
    [nox.param(interpreter(c[0]), *c[1:], id=name(*c)) for c in COMBINATIONS],
)
def compat(session: nox.Session, pytest: str, benchmark: str, xdist: bool) -> None:
    """The seams on one combination."""
    wanted = [f"pytest=={pytest}.*", f"pytest-benchmark=={benchmark}.*", *(["pytest-xdist>=3.6"] if xdist else [])]
    session.install("--system-certs", "--compile-bytecode", "--editable", ".", "hypothesis", "anyio", *wanted)
    at_a_corner = any(f"({name(*corner)})" in session.name for corner in CORNERS)
    tests = SEAMS if at_a_corner else (*CORE, *(CORE_XDIST if xdist else ()))
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *(session.posargs or tests))
