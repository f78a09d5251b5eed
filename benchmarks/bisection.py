"""Bisect over 16 environments with a planted 10 % step: right, wrong, or says that it does not know.

Each run is the product's own search (gates, repeats, confirmation). Launches of ``--simulated`` runs draw their TPOT
(launch sd 1.2 %, within 1.42 %); otherwise each launch is a process of the reference server with real requests.

    python benchmarks/bisection.py [--runs 50] [--jobs 3] [--simulated] [--step 0.1] [--minutes 9]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
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
        "right": right,
        "wrong": found.first_bad is not None and not right,
        "launches": launcher.launches,
        "steps": len(found.trials),
        "sentence": found.sentence,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed, to split the runs over several calls")
    parser.add_argument("--jobs", type=int, default=3, help="beside each other; they must not starve")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no search is begun after this long")
    parser.add_argument("--step", type=float, default=0.10)
    parser.add_argument("--simulated", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    seeds = range(options.first, options.first + options.runs)
    with ProcessPoolExecutor(options.jobs) as pool:
        until = time.time() + 60 * options.minutes
        search = partial(one_run, simulated=options.simulated, step=options.step, until=until)
        runs = [run for run in pool.map(search, seeds) if run is not None]
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
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
