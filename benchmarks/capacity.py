"""Capacity against a known truth: the reference server's slots and service time, and what they can take.

128 slots, each request 0.8 s in one of them, Poisson arrivals; the service level allows 0.2 s of waiting for the first
token. That is the queue M/D/c, whose waiting time has an exact distribution (Franx 2001): the rate at which 1 % of the
requests wait longer is the analytic value. Each run is a whole search by the product's own code (pilot, probes,
fit) on a process of the reference server with real requests; ``--simulated`` draws the queue instead.

    python benchmarks/capacity.py [--runs 50] [--first 0] [--jobs 8] [--requests 1500] [--minutes 9] [--simulated]
                                  [--log searches.jsonl]
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
import zlib
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from kept_searches import kept_searches
from reference_launches import MODEL, driven
from scipy.optimize import brentq
from scipy.special import gammaln

from pytest_vllmperf.capacity import CapacityPlan, find_capacity
from pytest_vllmperf.domain.records import ClientHealth, LoadRun, RequestOutcome, RequestRecord
from pytest_vllmperf.domain.summary import Summary, summarize
from pytest_vllmperf.domain.workload import ServiceLevel, Workload

SLOTS, SERVICE_S, WAIT_S, TARGET = 128, 0.8, 0.2, 0.99
TTFT_S = 0.01
_OVERHEAD_S = 0.002
"""What a request takes of the level besides waiting and the server's own TTFT: two processes on shared cores."""


def waits_longer(rate: float, wait_s: float = WAIT_S) -> float:
    """Share of the requests of an M/D/c queue that wait longer than ``wait_s``.

    The number in the system, looked at every service time, is a Markov chain; from its distribution follows the waiting
    time's (Franx, A simple solution for the M/D/c waiting time distribution, Operations Research Letters 29, 2001).
    """
    load = rate * SERVICE_S
    size = 4 * SLOTS + 200
    arrivals = _poisson(load, size)
    state = np.zeros(size)
    state[0] = 1.0
    for _ in range(20_000):
        left = np.zeros(size)
        left[0] = state[: SLOTS + 1].sum()
        left[1 : size - SLOTS] = state[SLOTS + 1 :]
        following = np.convolve(left, arrivals)[:size]
        following /= following.sum()
        moved = abs(following - state).max()
        state = following
        if moved < 1e-12:
            break
    queued = np.cumsum(state)[SLOTS:]
    services = math.floor(wait_s / SERVICE_S) + 1
    weights = _poisson(rate * (services * SERVICE_S - wait_s), services * SLOTS)
    return float(1 - (weights * queued[services * SLOTS - 1 - np.arange(services * SLOTS)]).sum())


def _poisson(mean: float, size: int) -> np.ndarray:
    counts = np.arange(size)
    return np.exp(counts * math.log(mean) - mean - gammaln(counts + 1))


@lru_cache(maxsize=1)
def analytic() -> float:
    """The capacity, req/s."""
    most = SLOTS / SERVICE_S
    return float(brentq(lambda rate: waits_longer(rate) - (1 - TARGET), 0.6 * most, 0.995 * most, xtol=1e-3))


def workload(requests: int, seed: int) -> Workload:
    level = ServiceLevel(ttft_s=WAIT_S + TTFT_S + _OVERHEAD_S)
    return Workload(
        name="load", input_tokens=8, output_tokens=1, requests=requests, max_concurrency=SLOTS, service_level=level,
        seed=seed,
    )  # fmt: skip


def simulated(asked: Workload, seed: int) -> tuple[Summary, LoadRun]:
    """The queue, drawn."""
    rng = np.random.default_rng([seed, asked.seed])
    gaps = rng.exponential(1 / asked.request_rate, asked.requests) if asked.request_rate else np.zeros(asked.requests)
    free, records = [0.0] * SLOTS, []
    for index, at in enumerate(np.cumsum(gaps)):
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + SERVICE_S)
        first, sent, last = (round(1e9 * t) for t in (begins + TTFT_S + 0.001, at, begins + SERVICE_S))
        records.append(
            RequestRecord(
                index=index, outcome=RequestOutcome.SUCCESS, status=200, intended_ns=sent, dispatched_ns=sent,
                written_ns=sent, first_byte_ns=first, event_ns=(first, last), event_tokens=(1, 0), ended_ns=last,
                input_tokens=8, output_tokens=1, cached_tokens=0, finish_reason="length", detail=None,
            )
        )  # fmt: skip
    health = ClientHealth(wall_ns=1, cpu_ns=0, run_queue_wait_ns=0, dispatch_lag_p99_ns=0, loop="none")
    run = LoadRun(records=tuple(records), started_ns=0, ended_ns=max(r.ended_ns for r in records), client=health)
    return summarize(run, engine="one", model=MODEL, workload=asked), run


def one_run(seed: int, *, requests: int, drawn: bool, until: float) -> dict[str, object] | None:
    """One search; None where the time was up before it began."""
    if time.time() > until:
        return None
    plan = CapacityPlan(workload=workload(requests, seed), target=TARGET, sweep=())
    began = time.monotonic()
    if drawn:
        found = find_capacity(plan, partial(simulated, seed=seed), progress=lambda _line: None)
    else:
        from reference import reference_server

        # a slot is held until the answer is closed: one more gap after its only token
        pace = ("--slots", str(SLOTS), "--ttft-ms", str(1e3 * TTFT_S), "--tpot-ms", str(1e3 * (SERVICE_S - TTFT_S)))
        with reference_server(*pace) as server:

            def drive(asked: Workload) -> tuple[Summary, LoadRun]:
                return driven(server, asked, engine="one", seed=zlib.crc32(f"{seed}/{asked.seed}".encode()))

            found = find_capacity(plan, drive, progress=lambda _line: None)
    capacity = found.capacity
    return {
        "seed": seed,
        "rate": capacity.rate,
        "held": capacity.low <= analytic() <= capacity.high,
        "interval": [capacity.low, capacity.high],
        "half_width": (capacity.high - capacity.low) / 2 / capacity.rate if capacity.rate else math.nan,
        "probes": len(found.summaries),
        "late": len(found.invalid),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed, to split the runs over several calls")
    parser.add_argument("--jobs", type=int, default=8, help="beside each other; the machine must keep up with them")
    parser.add_argument("--requests", type=int, default=1500, help="of each probe")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no search is begun after this long")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--log", type=Path, help="keep each search in this file, and make only those it lacks")
    options = parser.parse_args()
    began, truth = time.monotonic(), analytic()
    search = partial(
        one_run, requests=options.requests, drawn=options.simulated, until=time.time() + 60 * options.minutes
    )
    seeds = range(options.first, options.first + options.runs)
    runs = []
    for run, new in kept_searches(search, seeds, jobs=options.jobs, log=options.log):
        runs.append(run)
        if new:
            print(json.dumps(run), flush=True)
    runs.sort(key=lambda run: run["seed"])
    errors = np.array([(run["rate"] or math.nan) / truth - 1 for run in runs])
    print(
        json.dumps(
            {
                "kind": "simulated queue" if options.simulated else "real processes",
                "runs": len(runs),
                "analytic_rps": round(truth, 2),
                "within_5pct": int((abs(errors) <= 0.05).sum()),
                "probes_mean": round(float(np.mean([run["probes"] for run in runs])), 2),
                "probes_most": max(run["probes"] for run in runs),
                "error_mean_pct": round(100 * float(np.nanmean(errors)), 2),
                "error_sd_pct": round(100 * float(np.nanstd(errors)), 2),
                "interval_holds": round(float(np.mean([run["held"] for run in runs])), 3),
                "half_width_mean_pct": round(100 * float(np.nanmean([run["half_width"] for run in runs])), 1),
                "late_client": sum(run["late"] > 0 for run in runs),
                "requests_per_probe": options.requests,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
