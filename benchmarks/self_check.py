"""Does the load generator notice that it is the bottleneck?

The reference server has a core of its own; the load process is disturbed on another, from not at all to starved, in
several ways: busy processes beside it, with and without a lower priority of its own, and pulses in which it is stopped.
What really happened comes from the server's send stamps: a run is distorted when the mean or the median of TTFT or
TPOT is off by more than 5 %, and the load generator has noticed when its Summary is INVALID. A 99th percentile may be
off in a run that is sound otherwise: then it is withheld, and counted apart.

Run it from the repository, on a machine with two cores at least: ``python benchmarks/self_check.py [--each 50]``. The
last line is one JSON object: ``starved_flagged`` of ``starved`` distorted runs, ``clean_flagged`` of ``clean`` ones,
``runs``, and of the 99th percentiles ``p99_distorted`` with ``p99_distorted_withheld`` and ``p99_clean`` with
``p99_clean_withheld``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reference import MODEL, ReferenceServer, reference_server  # noqa: E402

from pytest_vllmperf.domain.records import LoadRun, latency_s  # noqa: E402
from pytest_vllmperf.domain.summary import summarize  # noqa: E402
from pytest_vllmperf.domain.workload import Workload  # noqa: E402
from pytest_vllmperf.load.driver import run_load  # noqa: E402
from pytest_vllmperf.load.questions import prompts  # noqa: E402

RANGE = (300, 30_000)
WORKLOAD = Workload(
    name="check", input_tokens=16, output_tokens=24, requests=120, max_concurrency=16, ramp_s=0.3, timeout_s=60.0
)
STATISTICS = ("mean", "p50", "p99")
LIMIT = 0.05
WAYS = ("none", "busy", "nice", "pulses")


@contextlib.contextmanager
def disturbed(way: str, strength: float, core: int) -> Iterator[None]:
    """Disturb what runs on ``core``, harder with ``strength`` from 0 to 1."""
    with contextlib.ExitStack() as stack:
        if way in ("busy", "nice"):
            count = 1 + round(strength * 5) if way == "busy" else 1
            duty = 1.0 if way == "busy" else 0.1 + 0.9 * strength
            for _ in range(count):
                stack.enter_context(_busy(core, duty=duty))
        if way == "nice":
            stack.enter_context(_niced(round(19 * strength)))
        if way == "pulses":
            stack.enter_context(_pulses(stopped_s=0.001 + 0.04 * strength, period_s=0.06))
        yield


@contextlib.contextmanager
def _busy(core: int, *, duty: float) -> Iterator[None]:
    code = (
        f"import os,time\nos.sched_setaffinity(0, {{{core}}})\n"
        f"while os.getppid() == {os.getpid()}:\n"
        f"    end = time.monotonic() + {0.02 * duty}\n"
        f"    while time.monotonic() < end: pass\n"
        f"    time.sleep({0.02 * (1 - duty)})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _load_process() -> psutil.Process | None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "pytest_vllmperf.load.worker" in child.cmdline():
                return child
    return None


@contextlib.contextmanager
def _niced(by: int) -> Iterator[None]:
    with _following(lambda process: process.nice(by), period_s=0.2):
        yield


@contextlib.contextmanager
def _pulses(*, stopped_s: float, period_s: float) -> Iterator[None]:
    def pulse(process: psutil.Process) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(stopped_s)
        process.send_signal(signal.SIGCONT)

    with _following(pulse, period_s=period_s - stopped_s):
        yield


@contextlib.contextmanager
def _following(act: object, *, period_s: float) -> Iterator[None]:
    over = threading.Event()

    def follow() -> None:
        process = None
        while not over.wait(period_s):
            process = process if process is not None and process.is_running() else _load_process()
            if process is not None:
                with contextlib.suppress(psutil.Error):
                    act(process)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def errors_of(run: LoadRun, server: ReferenceServer, seed: int) -> dict[str, float]:
    """How far each statistic is off, as a share of the truth."""
    openings = [tuple(prompt[:8]) for prompt in prompts(WORKLOAD, token_range=RANGE, seed=seed)]
    truths = {tuple(truth["opening"]): truth for truth in server.stamps()}
    found: dict[str, float] = {}
    pairs: dict[str, list[tuple[float, float]]] = {"ttft": [], "tpot": []}
    for record in run.records:
        truth = truths[openings[record.index]]
        sent = truth["sent_ns"]
        true = {
            "ttft": (sent[0] - truth["arrived_ns"]) * 1e-9,
            "tpot": (sent[-1] - sent[0]) * 1e-9 / (len(sent) - 1),
        }
        for name, both in pairs.items():
            both.append((latency_s(record, name, open_loop=False) or 0.0, true[name]))
    for name, both in pairs.items():
        measured, true = np.array(both).T
        for statistic, of in (("mean", np.mean), ("p50", np.median), ("p99", lambda x: np.percentile(x, 99))):
            found[f"{name}_{statistic}"] = abs(of(measured) / of(true) - 1)
    return found


@dataclass(frozen=True)
class Outcome:
    """One run: whether it was distorted, whether it was flagged, and the same of its 99th percentiles."""

    distorted: bool
    flagged: bool
    p99: tuple[tuple[bool, bool], ...]
    line: str


def one(way: str, strength: float, core: int, server: ReferenceServer, seed: int) -> Outcome:
    """Drive one disturbed run and compare what happened with what was said."""
    server.control("reset")
    with disturbed(way, strength, core):
        run = run_load(WORKLOAD, base_url=server.base_url, model=MODEL, api_key=None, token_range=RANGE, seed=seed)
    errors = errors_of(run, server, seed)
    summary = summarize(run, engine="reference", model=MODEL, workload=WORKLOAD)
    tails = tuple(name for name in errors if name.endswith("_p99"))
    worst = max((name for name in errors if name not in tails), key=lambda name: errors[name])
    estimate = summary.facts["client_error_estimate"].get(worst, 0.0)
    line = (
        f"{way:6} {strength:.2f}: {worst} off by {errors[worst]:6.1%}, estimated {estimate:6.1%}, "
        f"{'flagged' if summary.invalid else 'clean'}"
    )
    withheld = tuple((errors[name] > LIMIT, summary.metrics[name].value is None) for name in tails)
    return Outcome(errors[worst] > LIMIT, bool(summary.invalid), withheld, line)


def main() -> None:
    """Runs of every kind until enough of both are there, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=50, help="distorted and clean runs wanted")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    draw, seeds = random.Random(options.seed), 1000 * options.seed
    most = seeds + 6 * options.each
    outcomes: list[Outcome] = []
    with reference_server("--ttft-ms", "80", "--tpot-ms", "10", command=("taskset", "-c", str(cores[0]))) as server:
        os.sched_setaffinity(0, {cores[1]})
        while seeds < most:
            starved = sum(outcome.distorted for outcome in outcomes)
            clean = len(outcomes) - starved
            if min(starved, clean) >= options.each:
                break
            way = draw.choice(WAYS)
            while (clean >= options.each and way in WAYS[:2]) or (starved >= options.each and way == "pulses"):
                way = draw.choice(WAYS)  # what cannot give the kind that is still wanted costs time only
            seeds += 1
            outcome = one(way, draw.random(), cores[1], server, seed=seeds)
            # Once there are enough of one kind, no more of it are counted: nothing is chosen by what was said.
            if (starved if outcome.distorted else clean) < options.each:
                outcomes.append(outcome)
            print(outcome.line + (" <- WRONG" if outcome.distorted != outcome.flagged else ""), flush=True)
    result = {
        "starved_flagged": sum(o.distorted and o.flagged for o in outcomes),
        "starved": sum(o.distorted for o in outcomes),
        "clean_flagged": sum(o.flagged and not o.distorted for o in outcomes),
        "clean": sum(not o.distorted for o in outcomes),
        "runs": len(outcomes),
        "p99_distorted": sum(off for o in outcomes for off, _ in o.p99),
        "p99_distorted_withheld": sum(off and held for o in outcomes for off, held in o.p99),
        "p99_clean": sum(not off for o in outcomes for off, _ in o.p99),
        "p99_clean_withheld": sum(held and not off for o in outcomes for off, held in o.p99),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
