"""Compatibility: the plugin's own seams on every supported pytest, pytest-benchmark, pytest-xdist and Python.

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
    "tests/plugin/test_selection.py",
    "tests/plugin/test_xdist.py",
    "tests/adapters/test_benchmark_storage.py",
    "tests/adapters/test_history.py",
    "tests/unit/test_scheduling.py",
)
PYTESTS = ("8.4", "9.0", "9.1", "9.2")
BENCHMARKS = ("5.0", "5.3")
NEWEST = (PYTESTS[-1], BENCHMARKS[-1], True)
COMBINATIONS = [("3.11", p, b, x) for p in PYTESTS for b in BENCHMARKS for x in (True, False)]
COMBINATIONS += [(python, *NEWEST) for python in ("3.10", "3.12", "3.13")]


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
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *(session.posargs or SEAMS))
