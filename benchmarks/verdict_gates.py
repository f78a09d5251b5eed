"""Whole relative gates on real processes: how often they fail an unchanged engine, and one slower by a tenth.

Every launch is a process of the reference server (``tests/reference_server.py``) behind the product's own pool and
guardian, loaded by the product's own load process and judged by ``pytest_vllmperf.comparison``. The server's launches
differ from one another by 1.2 % and its requests by an AR(1) noise, as in the simulation; what the machine adds is
real. Streams are paced and mostly idle, so several gates run beside each other. The last line is one JSON object.

    python benchmarks/verdict_gates.py [--same 100] [--slower 50] [--jobs 6] [--minutes 60] [--log gates.jsonl]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from scipy.stats import binomtest

from pytest_vllmperf.adapters.environment import gather_environment
from pytest_vllmperf.comparison import Comparison, compare
from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.summary import Summary, summarize
from pytest_vllmperf.domain.thresholds import Outcome, Subject, Thresholds, resolve_tolerance
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.experiment import Launch, PoolLauncher
from pytest_vllmperf.pool import EnginePool

ROOT = Path(__file__).parent.parent
SERVER = ROOT / "tests" / "reference_server.py"
PACED = Workload(name="paced", input_tokens=16, output_tokens=16, requests=24, max_concurrency=8)
METRICS = ("tpot_mean", "e2el_mean", "output_throughput")
NOISE = {"launch-sd": 0.012, "ar1-phi": 0.5, "ar1-sd": 0.04, "ttft-ms": 250, "tpot-ms": 20}
SLOWER = 1.10
ATTEMPTS = 3
"""An INVALID gate says that its measurement is broken; whoever gets one runs it again."""


def engine(name: str, seed: str, counter: Path, **more: object) -> EngineConfig:
    """The reference server with the base noise; each of its launches draws a shift of its own."""
    args = {**NOISE, "noise-seed": f"{name}-{seed}", "launch-counter": str(counter), **more}
    command = (sys.executable, str(SERVER))
    return EngineConfig(name=name, model="reference", args=args, command=command, startup_timeout_s=120)


def measured(handle: EngineHandle, asked: Workload | QualityTask) -> Summary:
    """One load without warm-up, which a server that paces its answers does not need."""
    from pytest_vllmperf.load.driver import run_load

    assert isinstance(asked, Workload)
    run = run_load(
        asked,
        base_url=handle.base_url,
        model=handle.model_name,
        api_key=handle.api_key,
        token_range=(300, 900),
        seed=handle.pid,
    )
    return summarize(run, engine=handle.name, model=handle.model_name, workload=asked)


def gate(number: int, factor: float) -> tuple[dict[str, str], int, float, str]:
    """One gate: the outcome of each metric, launches made, seconds taken, and why it is INVALID where it is."""
    began, launches = time.monotonic(), list[Launch]()
    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        seed, counter = f"{factor}-{number}", Path(folder) / "launches"
        effects = [] if factor == 1 else [f"flag=slower:tpot*{factor},ttft*{factor}"]
        baseline = engine("baseline", seed, counter)
        candidate = engine("candidate", seed, counter, slower=True, **({"effect": effects} if effects else {}))
        pool = EnginePool(engines={}, environment=MACHINE, directory=Path(folder))
        subject = Subject(hardware="", model="reference", engine="candidate", workload=PACED.name)
        limits = tuple(resolve_tolerance(Thresholds(quality_tasks={}), subject, metric) for metric in METRICS)
        plan = Comparison(
            baseline=baseline, candidate=candidate, asked=(PACED,), limits={PACED.name: limits}, seed=number
        )
        try:
            found = compare(
                plan,
                PoolLauncher(pool=pool, measure_one=measured),
                progress=lambda _line: None,
                keep=launches.append,
            )
        finally:
            pool.close()
    invalid = next((v.reason for v in found.verdicts if v.outcome is Outcome.INVALID), "")
    return {v.metric: str(v.outcome) for v in found.verdicts}, len(launches), time.monotonic() - began, invalid


MACHINE = gather_environment(ROOT, gpus=(), driver=None)


@dataclass(frozen=True, slots=True)
class Gate:
    """What one gate came to."""

    number: int
    factor: float
    outcomes: dict[str, str]
    launches: int
    seconds: float
    invalid: str = ""
    repeated: int = 0
    """How often it was made again because it was INVALID: the client had been held up by the machine."""


class Log:
    """Gates already made, one JSON object a line: a run that is cut short goes on where it ended."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self.gates = {(gate.number, gate.factor): gate for gate in (Gate(**json.loads(line)) for line in lines)}
        self._lock = Lock()

    def add(self, gate: Gate) -> Gate:
        with self._lock:
            self.gates[gate.number, gate.factor] = gate
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(gate)) + "\n")
        return gate


def several(count: int, factor: float, arguments: argparse.Namespace, log: Log, until: float) -> dict[str, object]:
    """``count`` gates beside each other, fewer where the time is up; how many failed, by metric and in any."""

    def one(number: int) -> Gate | None:
        if (number, factor) in log.gates:
            return log.gates[number, factor]
        made = None
        for repeated in range(ATTEMPTS):
            if time.monotonic() >= until:
                break
            made = Gate(number, factor, *gate(number, factor), repeated=repeated)
            if not made.invalid or "FAIL" in made.outcomes.values():  # a false alarm must not be made again
                break
        return None if made is None else log.add(made)

    with ThreadPoolExecutor(arguments.jobs) as threads:
        done = [g for g in threads.map(one, range(arguments.first, arguments.first + count)) if g is not None]
    by_metric = {metric: Counter(gate.outcomes[metric] for gate in done) for metric in METRICS}
    print(f"\n{len(done)} of {count} gates, candidate x {factor}:")
    print(f"  {sum(gate.repeated for gate in done)} were INVALID and made again")
    for made in done:
        if made.invalid:
            print(f"  gate {made.number} is INVALID: {made.invalid}")
    for metric, outcomes in by_metric.items():
        print(f"  {metric}: " + ", ".join(f"{n} {name}" for name, n in sorted(outcomes.items())))
    return {
        "gates": len(done),
        "failed": sum("FAIL" in gate.outcomes.values() for gate in done),
        "made_again": sum(gate.repeated for gate in done),
        "passed": sum(set(gate.outcomes.values()) == {"PASS"} for gate in done),
        "tpot_failed": by_metric["tpot_mean"]["FAIL"],
        "launches": round(sum(gate.launches for gate in done) / max(1, len(done)), 2),
        "seconds": round(sum(gate.seconds for gate in done) / max(1, len(done)), 1),
    }


def goals_missed(same: dict[str, object], slower: dict[str, object], arguments: argparse.Namespace) -> list[str]:
    """What speaks against the gates; a run that was cut short proves nothing."""
    missed = []
    if same["gates"] != arguments.same or slower["gates"] != arguments.slower:
        missed.append("not all gates were made")
    if int(same["failed"]) > max(1, 0.02 * arguments.same):
        missed.append(f"{same['failed']} of {same['gates']} unchanged engines failed")
    if int(slower["failed"]) < math.floor(0.96 * arguments.slower):
        missed.append(f"only {slower['failed']} of {slower['gates']} engines slower by a tenth failed")
    return missed


def main() -> int:
    """Run the gates and print; 1 with ``--check`` where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--same", type=int, default=100, help="gates of an unchanged engine (default: 100)")
    parser.add_argument("--slower", type=int, default=50, help="gates of one slower by a tenth (default: 50)")
    parser.add_argument("--jobs", type=int, default=6, help="gates beside each other (default: 6)")
    parser.add_argument("--first", type=int, default=0, help="number of the first gate: decides the noise (default: 0)")
    parser.add_argument("--minutes", type=float, default=60, help="start no gate after this time (default: 60)")
    parser.add_argument("--log", type=Path, help="keep each gate in this file, and make only those it lacks")
    parser.add_argument("--check", action="store_true", help="end with 1 where a goal was missed")
    arguments = parser.parse_args()
    until, log = time.monotonic() + 60 * arguments.minutes, Log(arguments.log)
    slower = several(arguments.slower, SLOWER, arguments, log, until)
    same = several(arguments.same, 1.0, arguments, log, until)
    if same["gates"]:
        bound = binomtest(int(same["failed"]), int(same["gates"])).proportion_ci(0.90, method="exact").high
        print(
            f"\nunchanged: {same['failed']} of {same['gates']} failed in any of {len(METRICS)} metrics (≤ {bound:.1%})"
        )
    print(f"slower by a tenth: {slower['failed']} of {slower['gates']} failed, {slower['tpot_failed']} in TPOT")
    missed = goals_missed(same, slower, arguments) if arguments.check else []
    for what in missed:
        print(f"missed: {what}")
    print(json.dumps({"same": same, "slower": slower}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
