"""What the installed plugin adds to the start of pytest in a project that does not use it.

Runs ``pytest --collect-only`` in an empty folder, alternating with and without ``-p no:vllmperf`` so
that a machine that gets slower or faster meanwhile does so for both. The last line is one JSON object:
``{"start_ms": difference of the median wall times, "start_cpu_ms": the same of CPU time, …}``. On a busy
machine wall time says little and CPU time still says something.

    python benchmarks/plugin_overhead.py [--runs 15]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import entry_points

WITH, WITHOUT = "with", "without"
ARGUMENTS = {WITH: (), WITHOUT: ("-p", "no:vllmperf")}
NO_TESTS_COLLECTED = 5


def start_ms(folder: str, *arguments: str) -> tuple[float, float]:
    """Wall and CPU time of one start, in ms."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *arguments]
    cpu_began, began = children_cpu_s(), time.perf_counter_ns()
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = time.perf_counter_ns() - began
    if finished.returncode != NO_TESTS_COLLECTED:
        sys.exit(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    return took / 1e6, (children_cpu_s() - cpu_began) * 1e3


def children_cpu_s() -> float:
    """CPU time of every child that has ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(runs: int) -> dict[str, list[tuple[float, float]]]:
    """Times of ``runs`` starts of each kind; which comes first changes from pair to pair."""
    times: dict[str, list[tuple[float, float]]] = {WITH: [], WITHOUT: []}
    with tempfile.TemporaryDirectory() as folder:
        for arguments in ARGUMENTS.values():
            start_ms(folder, *arguments)  # fills the caches of bytecode and files
        for run in range(runs):
            for kind in (WITH, WITHOUT) if run % 2 else (WITHOUT, WITH):
                times[kind].append(start_ms(folder, *ARGUMENTS[kind]))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="starts of each kind (default: 15)")
    runs = parser.parse_args().runs
    if not entry_points(group="pytest11", name="vllmperf"):
        sys.exit("the plugin is not installed here: pip install -e .")
    times = measure(runs)
    wall, cpu = ({kind: statistics.median(t[which] for t in ts) for kind, ts in times.items()} for which in (0, 1))
    for kind in times:
        print(f"{kind:>7} the plugin: {wall[kind]:.1f} ms wall, {cpu[kind]:.1f} ms CPU (medians of {runs} starts)")
    result = {
        "start_ms": round(wall[WITH] - wall[WITHOUT], 1),
        "start_cpu_ms": round(cpu[WITH] - cpu[WITHOUT], 1),
        "with_ms": round(wall[WITH], 1),
        "without_ms": round(wall[WITHOUT], 1),
        "runs": runs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
