"""Does the load generator notice that it is the bottleneck?

The reference server has a core of its own, before all others where that is allowed; the load process is disturbed on
another, from not at all to starved, in several ways: busy processes beside it, with and without a lower priority of its
own, and pulses in which it is stopped.
What really happened comes from the server's send stamps: a run is distorted when the mean or the median of TTFT or
TPOT is off by more than 5 %, and the load generator has noticed when its Summary is INVALID. A 99th percentile may be
off in a run that is sound otherwise: then it is withheld, and counted apart.

Run it from the repository, on a machine with two cores at least: ``python benchmarks/self_check.py [--each 50]``;
with ``--log FILE`` it goes on where an earlier call with the same seed stopped. The last line is one JSON object:
``starved_flagged`` of ``starved`` distorted runs, ``clean_flagged`` of ``clean`` ones, ``runs``, and of the 99th
percentiles ``p99_distorted`` with ``p99_distorted_withheld`` and ``p99_clean`` with ``p99_clean_withheld``.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reference import MODEL, ReferenceServer, first_served, reference_server  # noqa: E402

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
            stack.enter_context(_pulses(stopped_s=0.001 + 0.12 * strength, running_s=0.04))
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
def _pulses(*, stopped_s: float, running_s: float) -> Iterator[None]:
    def pulse(process: psutil.Process) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(stopped_s)
        process.send_signal(signal.SIGCONT)

    with _following(pulse, period_s=running_s):
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
            found[f"{name}_{statistic}"] = abs(float(of(measured) / of(true)) - 1)
    return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run: how far each statistic was off, how far it was said to be, and what was said of the run.

    ``errors`` and ``estimates`` are shares of the truth and of the measured value, by statistic.
    """

    seed: int
    way: str
    strength: float
    errors: dict[str, float]
    estimates: dict[str, float]
    invalid: list[str]
    withheld: list[str]
    client: dict[str, float | None]

    @property
    def worst(self) -> str:
        """The mean or median that is off furthest."""
        return max((name for name in self.errors if not name.endswith("_p99")), key=lambda name: self.errors[name])

    @property
    def distorted(self) -> bool:
        return self.errors[self.worst] > LIMIT

    @property
    def flagged(self) -> bool:
        return bool(self.invalid)

    @property
    def tails(self) -> list[tuple[bool, bool]]:
        """Of each 99th percentile: whether it was off, and whether it was withheld."""
        names = [name for name in self.errors if name.endswith("_p99")]
        return [(self.errors[name] > LIMIT, name in self.withheld) for name in names]

    def __str__(self) -> str:
        verdict = "flagged" if self.flagged else "clean"
        wrong = " <- WRONG" if self.distorted != self.flagged else ""
        estimate = self.estimates.get(self.worst, 0.0)
        return (
            f"{self.seed} {self.way:6} {self.strength:.2f}: {self.worst} off by {self.errors[self.worst]:6.1%}, "
            f"estimated {estimate:6.1%}, {verdict}{wrong}"
        )


def one(way: str, strength: float, core: int, server: ReferenceServer, seed: int) -> Outcome:
    """Drive one disturbed run and compare what happened with what was said."""
    server.control("reset")
    with disturbed(way, strength, core):
        run = run_load(WORKLOAD, base_url=server.base_url, model=MODEL, api_key=None, token_range=RANGE, seed=seed)
    errors = errors_of(run, server, seed)
    summary = summarize(run, engine="reference", model=MODEL, workload=WORKLOAD)
    return Outcome(
        seed=seed,
        way=way,
        strength=round(strength, 3),
        errors={name: round(error, 5) for name, error in errors.items()},
        estimates=dict(summary.facts["client_error_estimate"]),
        invalid=list(summary.invalid),
        withheld=[name for name in errors if summary.metrics[name].value is None],
        client={name: value for name, value in asdict(run.client).items() if name != "loop"},
    )


def counted(outcomes: Iterable[Outcome], each: int) -> list[Outcome]:
    """The first ``each`` distorted runs and the first ``each`` clean ones: nothing is chosen by what was said."""
    kept: dict[bool, list[Outcome]] = {True: [], False: []}
    for outcome in outcomes:
        if len(kept[outcome.distorted]) < each:
            kept[outcome.distorted].append(outcome)
    return kept[True] + kept[False]


def result_of(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """What the last line says."""
    starved = [outcome for outcome in outcomes if outcome.distorted]
    clean = [outcome for outcome in outcomes if not outcome.distorted]
    tails = [tail for outcome in outcomes for tail in outcome.tails]
    return {
        "starved_flagged": sum(outcome.flagged for outcome in starved),
        "starved": len(starved),
        "clean_flagged": sum(outcome.flagged for outcome in clean),
        "clean": len(clean),
        "runs": len(outcomes),
        "p99_distorted": sum(off for off, _ in tails),
        "p99_distorted_withheld": sum(off and held for off, held in tails),
        "p99_clean": sum(not off for off, _ in tails),
        "p99_clean_withheld": sum(held and not off for off, held in tails),
    }


def drive(outcomes: list[Outcome], options: argparse.Namespace) -> None:
    """Runs until enough of both kinds are there, or the time is up; each is logged as soon as it is over."""
    cores = sorted(os.sched_getaffinity(0))
    until = time.monotonic() + options.seconds
    first = 1000 * options.seed + 1
    with reference_server("--ttft-ms", "80", "--tpot-ms", "10", command=first_served(cores[0])) as server:
        os.sched_setaffinity(0, {cores[1]})
        for seed in range(first + len(outcomes), first + 6 * options.each):
            starved = sum(outcome.distorted for outcome in outcomes)
            enough = {True: starved >= options.each, False: len(outcomes) - starved >= options.each}
            if all(enough.values()) or time.monotonic() > until:
                break
            draw = random.Random(seed)
            way = draw.choice(WAYS)
            while (enough[False] and way != "pulses") or (enough[True] and way == "pulses"):
                way = draw.choice(WAYS)  # what hardly gives the kind that is still wanted costs time only
            outcome = one(way, draw.random(), cores[1], server, seed)
            outcomes.append(outcome)
            print(outcome, flush=True)
            if options.log:
                with options.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(asdict(outcome)) + "\n")


def main() -> None:
    """Runs of every kind until enough of both are there, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=50, help="distorted and clean runs wanted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="keep every run in this file, and go on from what it holds")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no run after so long")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    if options.log and options.log.exists():
        outcomes = [Outcome(**json.loads(line)) for line in options.log.read_text(encoding="utf-8").splitlines()]
    drive(outcomes, options)
    print(json.dumps(result_of(counted(outcomes, options.each))))


if __name__ == "__main__":
    main()
