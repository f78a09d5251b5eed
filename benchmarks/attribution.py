"""Attribution against planted truth: coverage of the intervals, the null flag cleared, the interaction named.

Four flags on the reference server: ``a`` makes TPOT 20 % longer, ``b`` 10 % shorter, ``c`` does nothing, and ``d``
nothing by itself but 10 % with ``a``. Launches differ by 1.2 % (sd), requests by 3 % (AR(1), 0.7), gaps by 2 %. Each
run is a whole attribution by the product's own code (plan, order, estimates, claims); real processes unless
``--simulated``, which draws each launch's TPOT instead and repeats far more.

    python benchmarks/attribution.py [--runs 100] [--jobs 6] [--simulated]
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

from pytest_vllmperf.attribution import AttributionPlan, take_apart
from pytest_vllmperf.domain.attribution import Wanted
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.experiment import Launch

BASE = EngineConfig(name="base", model="reference", command=("reference",))
CANDIDATE = EngineConfig(name="candidate", model="reference", command=("reference",), args=dict.fromkeys("abcd", True))
LOAD = Workload(name="load", input_tokens=8, output_tokens=12, requests=24, max_concurrency=24)
WANTED = (Wanted(workload="load", metric="tpot_mean", tolerance=0.05),)
SERVER = (
    *("--ttft-ms", "15", "--tpot-ms", "20", "--launch-sd", "0.012", "--ar1-sd", "0.03", "--ar1-phi", "0.7"),
    *("--jitter-sd", "0.02", "--effect", "flag=a:tpot*1.2", "--effect", "flag=b:tpot*0.9"),
    *("--effect", "flag=a&d:tpot*1.1"),
)
TRUTH = {"a": math.log(1.2) + math.log(1.1) / 2, "b": math.log(0.9), "c": 0.0, "d": math.log(1.1) / 2}
"""Main effects: the interaction counts half for each of its two flags."""
_SPREAD = 0.0186


class Simulated:
    """Draws what a launch would have measured."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def measure(self, engine: EngineConfig, _asked: object) -> Launch:
        on = {name for name in "abcd" if engine.args.get(name)}
        level = math.log(1.2) * ("a" in on) + math.log(0.9) * ("b" in on) + math.log(1.1) * ({"a", "d"} <= on)
        tpot = 0.020 * math.exp(level + self.rng.normal(0, _SPREAD))
        summary = Summary(
            engine=engine.name, workload="load", kind="load", model="", description="", requests=1, completed=1,
            failures={}, duration_s=1.0, metrics=metric_values(distributions={"tpot": [tpot]}, scalars={}),
            invalid=(), warnings=(), facts={},
        )  # fmt: skip
        return Launch(engine=engine.name, number=1, version=None, summaries={"load": summary})


def one_run(seed: int, *, simulated: bool) -> dict[str, object]:
    """One attribution, held against the truth."""
    launcher = Simulated(seed) if simulated else ReferenceLauncher(options=SERVER, seed=seed)
    plan = AttributionPlan(base=BASE, candidate=CANDIDATE, asked=(LOAD,), wanted=WANTED, seed=seed)
    found = take_apart(plan, launcher, progress=lambda _line: None)
    (metric,) = found.result.metrics
    by_name = {f.factor: f for f in metric.factors}
    covered = {
        name: f.change is not None and f.change.low <= math.expm1(TRUTH[name]) <= f.change.high
        for name, f in by_name.items()
    }
    named = [frozenset(i.factors) for i in metric.interactions]
    return {
        "covered": covered,
        "estimates": {name: f.change.value if f.change else None for name, f in by_name.items()},
        "null": by_name["c"].status == "no effect",
        "claims": {name: f.status for name, f in by_name.items()},
        "named": frozenset("ad") in named,
        "others": len([pair for pair in named if pair != frozenset("ad")]),
        "noise": metric.noise,
        "launches": len(found.runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed, to split the runs over several calls")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--simulated", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    seeds = range(options.first, options.first + options.runs)
    with ProcessPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(partial(one_run, simulated=options.simulated), seeds))
    took = time.monotonic() - began
    share = {name: np.mean([run["covered"][name] for run in runs]) for name in "abcd"}
    for name in "abcd":
        estimates = [run["estimates"][name] for run in runs]
        statuses = {s: sum(run["claims"][name] == s for run in runs) for s in ("effect", "no effect", "unclear")}
        print(
            f"{name}: true {100 * math.expm1(TRUTH[name]):+.1f} %, mean {100 * np.mean(estimates):+.1f} %, "
            f"sd {100 * np.std(estimates):.2f} %, covered {share[name]:.2f}, {statuses}"
        )
    print(f"spread of equal launches {100 * np.mean([run['noise'] for run in runs]):.2f} %, {took:.0f} s")
    print(
        json.dumps(
            {
                "kind": "simulated launches" if options.simulated else "real processes",
                "runs": len(runs),
                "coverage": round(float(np.mean(list(share.values()))), 4),
                "coverage_worst_flag": round(float(min(share.values())), 4),
                "null_correct": round(float(np.mean([run["null"] for run in runs])), 4),
                "interaction_named": round(float(np.mean([run["named"] for run in runs])), 4),
                "other_interactions": round(float(np.mean([run["others"] > 0 for run in runs])), 4),
                "launches": round(float(np.mean([run["launches"] for run in runs])), 1),
                "seconds": round(took, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
