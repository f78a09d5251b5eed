"""Bisect over 16 environments with a planted 10 % step: right, wrong, or says that it does not know.

Each run is the product's own search (gates, repeats, confirmation). Launches of ``--simulated`` runs draw their TPOT
(launch sd 1.2 %, within 1.42 %); otherwise each launch is a process of the reference server with real requests.
``--spread N`` makes N equal launches in each job instead, and says by how much they differ: the planted noise alone is
1.9 %, what is more comes from the machine, and tells how many searches it bears beside each other.

    python benchmarks/bisection.py [--runs 50] [--first 0] [--jobs 5] [--simulated] [--step 0.1] [--minutes 9]
                                   [--log searches.jsonl] [--spread 0]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from kept_searches import kept_searches
from reference_launches import ReferenceLauncher

from pytest_vllmperf.bisection import BisectPlan, bisect
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.domain.thresholds import Limit
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.experiment import Launch

PLACES = 16
LOAD = Workload(name="load", input_tokens=8, output_tokens=12, requests=24, max_concurrency=24)
LIMIT = Limit(
    metric="tpot_mean", maximum=None, minimum=None, tolerance=0.05, required=False, where="benchmark", text="within 5 %"
)
ROW = tuple(
    EngineConfig(name=f"v{place}", model="reference", command=("reference",), args={"build": place})
    for place in range(PLACES)
)
SERVER = (
    *("--ttft-ms", "15", "--tpot-ms", "40", "--launch-sd", "0.012", "--ar1-sd", "0.03", "--ar1-phi", "0.7"),
    *("--jitter-sd", "0.02"),
)


class Simulated:
    """Draws what a launch would have measured."""

    def __init__(self, seed: int, first_bad: int, step: float) -> None:
        self.rng, self.first_bad, self.step = np.random.default_rng(seed), first_bad, step
        self.launches = 0

    def measure(self, engine: EngineConfig, _asked: object) -> Launch:
        self.launches += 1
        slower = self.step * (int(engine.name[1:]) >= self.first_bad)
        tpot = 0.02 * (1 + slower) * math.exp(self.rng.normal(0, np.hypot(0.012, 0.0142)))
        summary = Summary(
            engine=engine.name, workload="load", kind="load", model="", description="", requests=1, completed=1,
            failures={}, duration_s=1.0, invalid=(), warnings=(), facts={},
            metrics=metric_values(distributions={"tpot": [tpot]}, scalars={"error_rate": 0.0}),
        )  # fmt: skip
        return Launch(engine=engine.name, number=1, version=None, summaries={"load": summary})


def one_run(seed: int, *, simulated: bool, step: float, until: float) -> dict[str, object] | None:
    """One search; None where the time was up before it began."""
    if time.time() > until:
        return None
    began = time.monotonic()
    first_bad = 1 + int(np.random.default_rng(seed).integers(PLACES - 1))
    if simulated:
        launcher: Simulated | ReferenceLauncher = Simulated(seed, first_bad, step)
    else:
        planted = [f"flag=build={place}:tpot*{1 + step}" for place in range(first_bad, PLACES)]
        effects = [word for effect in planted for word in ("--effect", effect)]
        launcher = ReferenceLauncher(options=(*SERVER, *effects), seed=seed)
    plan = BisectPlan(engines=ROW, asked=(LOAD,), limits={"load": (LIMIT,)}, seed=seed)
    found = bisect(plan, launcher, progress=lambda _line: None)
    right = found.first_bad == f"v{first_bad}"
    return {
        "seed": seed,
        "right": right,
        "wrong": found.first_bad is not None and not right,
        "launches": launcher.launches,
        "steps": len(found.trials),
        "seconds": round(time.monotonic() - began, 1),
        "sentence": found.sentence,
    }


def equal_launches(job: int, *, count: int) -> list[float]:
    """TPOTs of so many launches of one engine, in seconds."""
    launcher = ReferenceLauncher(options=SERVER, seed=1_000_000 + job)
    launches = [launcher.measure(ROW[0], (LOAD,)) for _ in range(count)]
    return [float(launch.summaries["load"].metrics["tpot_mean"].value or math.nan) for launch in launches]


def spread(count: int, jobs: int) -> dict[str, object]:
    """How far equal launches are apart on this machine with so many jobs beside each other."""
    began = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        logs = np.log(np.concatenate(list(pool.map(partial(equal_launches, count=count), range(jobs)))))
    return {
        "jobs": jobs,
        "launches": logs.size,
        "tpot_mean_ms": round(1e3 * float(np.exp(logs.mean())), 2),
        "equal_launches_sd_pct": round(100 * float(logs.std(ddof=1)), 2),
        "seconds_per_launch": round((time.monotonic() - began) / count, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed, to split the runs over several calls")
    parser.add_argument("--jobs", type=int, default=5, help="beside each other; they must not starve")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no search is begun after this long")
    parser.add_argument("--step", type=float, default=0.10)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--log", type=Path, help="keep each search in this file, and make only those it lacks")
    parser.add_argument("--spread", type=int, default=0, metavar="N", help="only N equal launches in each job")
    options = parser.parse_args()
    if options.spread:
        print(json.dumps(spread(options.spread, options.jobs)))
        return
    began, until = time.monotonic(), time.time() + 60 * options.minutes
    seeds = range(options.first, options.first + options.runs)
    search = partial(one_run, simulated=options.simulated, step=options.step, until=until)
    found = kept_searches(search, seeds, jobs=options.jobs, log=options.log)
    runs = sorted((run for run, _ in found), key=lambda run: run["seed"])
    for run in runs:
        if not run["right"]:
            print(("WRONG: " if run["wrong"] else "") + str(run["sentence"]))
    print(
        json.dumps(
            {
                "kind": "simulated launches" if options.simulated else "real processes",
                "runs": len(runs),
                "step": options.step,
                "right": sum(bool(run["right"]) for run in runs),
                "wrong": sum(bool(run["wrong"]) for run in runs),
                "does_not_know": sum(not run["right"] and not run["wrong"] for run in runs),
                "launches_mean": round(float(np.mean([run["launches"] for run in runs])), 1),
                "steps_mean": round(float(np.mean([run["steps"] for run in runs])), 1),
                "seconds_per_search": round(float(np.mean([run["seconds"] for run in runs])), 1),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
