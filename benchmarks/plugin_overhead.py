"""What the installed plugin costs: a start of pytest, a test beside its measurement, collecting a thousand tests.

Everything is measured in pairs that alternate, with the plugin and without, so that a machine that gets slower
meanwhile does so for both; on a busy machine wall time says little and CPU time (``…cpu…``) still says something.

- ``start_ms``: ``pytest --collect-only`` in an empty folder, against ``-p no:vllmperf``.
- ``collection_ratio``: ``pytest --collect-only`` of 1 000 tests that use an engine, against the same tests with an
  ordinary fixture, parametrized likewise, and ``-p no:vllmperf``. ``plain_collection_ratio``: of 1 000 ordinary tests.
- ``per_test_ms``: how much longer each further test takes that judges a measurement that is there already (of 200
  requests with 64 tokens each), beyond what each further test takes that does the same with an ordinary fixture. The
  difference between a suite of many and a suite of few leaves out the engine and the measurement.

    python benchmarks/plugin_overhead.py [--runs 15]

The last line is one JSON object. Exit code 1 when a limit is missed: 30 ms, 5 ms, 1.10.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

WITH, WITHOUT = "with", "without"
LIMITS = {"start_ms": 30.0, "per_test_ms": 5.0, "collection_ratio": 1.10, "plain_collection_ratio": 1.10}
OFF = ("-p", "no:vllmperf")
NO_TESTS_COLLECTED = 5
FEW, MANY = 20, 220
FAKE_ENGINE = Path(__file__).parents[1] / "tests" / "fake_engine.py"

DECLARED = f"""
from pytest_vllmperf import EngineConfig, Workload

def pytest_vllmperf_engines(config):
    return [EngineConfig(name="one", model="fake-model", command=({sys.executable!r}, {str(FAKE_ENGINE)!r}))]

def pytest_vllmperf_workloads(config):
    return [Workload(name="load", input_tokens=16, output_tokens=64, requests=200, max_concurrency=50)]
"""
ORDINARY = """
import pytest

@pytest.fixture(scope="session", params=["one"])
def vllm_engine(request):
    return request.param

@pytest.fixture
def vllm_measure(vllm_engine):
    return lambda workload: {"ttft_mean": 1.0}

@pytest.fixture
def vllm_check():
    def check(summary, *metrics):
        assert all(summary[metric] < 60 for metric in metrics)
    return check
"""
LIMIT = 'version = 1\n[[limit]]\nttft_mean = { max = "60 s" }\n'
USES_ENGINE = "def test_{}(vllm_engine):\n    pass\n\n"
PLAIN = "def test_{}():\n    pass\n\n"
JUDGES = 'def test_{}(vllm_measure, vllm_check):\n    vllm_check(vllm_measure("load"), "ttft_mean")\n\n'


def project(folder: Path, name: str, *, conftest: str = "", test: str = "", count: int = 0) -> Path:
    """A folder with a conftest and ``count`` tests, a hundred in a file."""
    root = folder / name
    root.mkdir()
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "thresholds.toml").write_text(LIMIT)
    if conftest:
        (root / "conftest.py").write_text(conftest)
    for first in range(0, count, 100):
        numbers = range(first, min(first + 100, count))
        (root / f"test_{first}.py").write_text("".join(test.format(number) for number in numbers))
    return root


def run(root: Path, *arguments: str) -> tuple[float, float]:
    """Wall and CPU time of one pytest, in ms; of all its processes that have ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    cpu_began, began = children_cpu_s(), time.perf_counter_ns()
    finished = subprocess.run(command, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    took = time.perf_counter_ns() - began
    if finished.returncode not in (0, NO_TESTS_COLLECTED):
        sys.exit(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    return took / 1e6, (children_cpu_s() - cpu_began) * 1e3


ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTHONDONTWRITEBYTECODE")}


def children_cpu_s() -> float:
    """CPU time of every child that has ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def alternate(runs: int, kinds: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Median wall and CPU time of ``runs`` of each kind; which comes first changes from round to round."""
    for measure in kinds.values():
        measure()  # fills the caches of bytecode and files
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(runs):
        for kind in sorted(kinds, reverse=bool(number % 2)):
            times[kind].append(kinds[kind]())
    return {
        kind: (statistics.median(t[0] for t in ts), statistics.median(t[1] for t in ts)) for kind, ts in times.items()
    }


def starts(folder: Path, runs: int) -> dict[str, float]:
    """What a start costs in a project that does not use the plugin."""
    root = project(folder, "empty")
    collect = (root, "--collect-only")
    took = alternate(runs, {WITH: lambda: run(*collect), WITHOUT: lambda: run(*collect, *OFF)})
    return {
        "start_ms": round(took[WITH][0] - took[WITHOUT][0], 1),
        "start_cpu_ms": round(took[WITH][1] - took[WITHOUT][1], 1),
        "without_ms": round(took[WITHOUT][0], 1),
    }


def collections(folder: Path, runs: int) -> dict[str, float]:
    """What collecting costs: tests that use an engine, and ordinary ones."""
    declared = project(folder, "declared", conftest=DECLARED, test=USES_ENGINE, count=1000)
    ordinary = project(folder, "ordinary", conftest=ORDINARY, test=USES_ENGINE, count=1000)
    plain = project(folder, "plain", test=PLAIN, count=1000)
    took = alternate(
        runs,
        {
            "declared": lambda: run(declared, "--collect-only"),
            "ordinary": lambda: run(ordinary, "--collect-only", *OFF),
            "plain": lambda: run(plain, "--collect-only"),
            "plain off": lambda: run(plain, "--collect-only", *OFF),
        },
    )
    ratios = {
        "collection": (took["declared"], took["ordinary"]),
        "plain_collection": (took["plain"], took["plain off"]),
    }
    wall = {f"{name}_ratio": round(a[0] / b[0], 3) for name, (a, b) in ratios.items()}
    cpu = {f"{name}_cpu_ratio": round(a[1] / b[1], 3) for name, (a, b) in ratios.items()}
    return {**wall, **cpu, "collected_ms": round(took["ordinary"][0], 1)}


def tests(folder: Path, runs: int) -> dict[str, float]:
    """What each further test costs that judges a measurement."""
    kinds: dict[str, Callable[[], tuple[float, float]]] = {}
    for count in (FEW, MANY):
        ours = project(folder, f"ours-{count}", conftest=DECLARED, test=JUDGES, count=count)
        theirs = project(folder, f"theirs-{count}", conftest=ORDINARY, test=JUDGES, count=count)
        kinds[f"ours {count}"] = lambda ours=ours: run(ours)
        kinds[f"theirs {count}"] = lambda theirs=theirs: run(theirs, *OFF)
    took = alternate(runs, kinds)

    def each(kind: str, which: int) -> float:
        return (took[f"{kind} {MANY}"][which] - took[f"{kind} {FEW}"][which]) / (MANY - FEW)

    return {
        "per_test_ms": round(each("ours", 0) - each("theirs", 0), 2),
        "per_test_cpu_ms": round(each("ours", 1) - each("theirs", 1), 2),
    }


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="runs of each kind (default: 15; a third for tests)")
    runs = parser.parse_args().runs
    if not entry_points(group="pytest11", name="vllmperf"):
        sys.exit("the plugin is not installed here: pip install -e .")
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part, times in ((starts, runs), (collections, runs), (tests, max(3, runs // 3))):
            found = part(Path(folder), times)
            print(f"{part.__name__}: {', '.join(f'{name} {value}' for name, value in found.items())}", flush=True)
            result |= found
    missed = [name for name, limit in LIMITS.items() if float(str(result[name])) >= limit]
    print(json.dumps({**result, "runs": runs, "missed": missed}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
