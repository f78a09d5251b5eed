"""Capacity searches over many simulated queues whose capacity is known: error, and whether the interval holds it.

Queues before few and many slots, with fixed, exponential and lognormal service; engines that batch, where every token
takes longer the more requests run, with a limit on TPOT. Each search is the product's own (``CapacitySearch``), of 11
probes at most, started where a pilot would start it. The true capacities come from simulations of six million requests;
``--check`` simulates a million at each and says which share missed the level. The last line is one JSON object.

    python benchmarks/capacity_queues.py [--runs 50] [--first 0] [--jobs 2] [--only NAME …] [--check]
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from pytest_vllmperf.domain.capacity import CapacitySearch, Probe

PROBES = 11
BASE = 0.05
"""Part of the level that a request takes without any waiting."""
STEP_S, PER_RUNNING_S, TOKENS = 0.01, 0.0005, 64
TTFT_LIMIT_S = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Services last 1 s on average; the level allows ``wait_s`` before one begins. ``spread`` is sd / mean of services.

    With ``tpot_s`` it is an engine instead: a step takes 10 ms and 0.5 ms more for each request running, ``spread`` 1
    draws geometric numbers of tokens (64 on average), and the level allows ``tpot_s`` a token and 0.4 s to the first.
    """

    slots: int
    capacity: float
    spread: float = 0.0
    wait_s: float = 0.0
    tpot_s: float | None = None
    target: float = 0.99
    requests: int = 1500

    @property
    def saturated(self) -> float:
        """What a closed loop takes, req/s."""
        if self.tpot_s is None:
            return float(self.slots)
        return self.slots / (TOKENS * (STEP_S + PER_RUNNING_S * self.slots))

    def probe(self, rng: np.random.Generator, rate: float, requests: int) -> Probe:
        """One probe, drawn."""
        arrivals = np.cumsum(rng.exponential(1 / rate, requests))
        uses = self._waits(rng, arrivals) if self.tpot_s is None else self._steps(rng, arrivals)
        arrived = (requests - 1) / float(arrivals[-1] - arrivals[0])
        return Probe(rate=rate, uses=tuple(uses.tolist()), arrived=arrived)

    def _waits(self, rng: np.random.Generator, arrivals: np.ndarray) -> np.ndarray:
        count = len(arrivals)
        if self.spread == 0:
            services = np.ones(count)
        elif self.spread == 1:
            services = rng.exponential(1, count)
        else:
            log_sd = math.sqrt(math.log1p(self.spread**2))
            services = rng.lognormal(-(log_sd**2) / 2, log_sd, count)
        free, waits = [0.0] * self.slots, []
        for at, service in zip(arrivals.tolist(), services.tolist(), strict=True):
            begins = max(at, free[0])
            heapq.heapreplace(free, begins + service)
            waits.append(begins - at)
        uses: np.ndarray = (np.array(waits) + BASE * self.wait_s) / (self.wait_s * (1 + BASE))
        return uses

    def _steps(self, rng: np.random.Generator, arrivals: np.ndarray) -> np.ndarray:
        count = len(arrivals)
        tokens = 1 + rng.geometric(1 / TOKENS, count) if self.spread else np.full(count, TOKENS)
        first, last, now, sent = np.zeros(count), np.zeros(count), 0.0, 0
        running = np.empty(0, dtype=int)
        left = tokens.copy()
        while sent < count or running.size:
            if not running.size:
                now = max(now, float(arrivals[sent]))
            until = min(int(np.searchsorted(arrivals, now, side="right")), sent + self.slots - running.size)
            running, sent = np.concatenate([running, np.arange(sent, until)]), max(sent, until)
            now += STEP_S + PER_RUNNING_S * running.size
            first[running[first[running] == 0]] = now
            left[running] -= 1
            last[running[left[running] == 0]] = now
            running = running[left[running] > 0]
        tpots = (last - first) / np.maximum(tokens - 1, 1)
        uses: np.ndarray = np.maximum((first - arrivals) / TTFT_LIMIT_S, tpots / (self.tpot_s or math.inf))
        return uses


QUEUES = {
    "M/D/4": Queue(slots=4, wait_s=1.0, capacity=2.400),
    "M/D/16": Queue(slots=16, wait_s=0.5, capacity=12.62),
    "M/D/128": Queue(slots=128, wait_s=0.25, capacity=120.5),
    "M/D/128, 95 %": Queue(slots=128, wait_s=0.25, target=0.95, capacity=123.1),
    "M/M/8": Queue(slots=8, spread=1.0, wait_s=1.0, requests=2000, capacity=5.11),
    "M/M/64": Queue(slots=64, spread=1.0, wait_s=0.25, capacity=53.88),
    "M/M/64, 95 %": Queue(slots=64, spread=1.0, wait_s=0.5, target=0.95, requests=1000, capacity=59.60),
    "M/M/256": Queue(slots=256, spread=1.0, wait_s=0.05, requests=4000, capacity=227.4),
    "M/G/16, lognormal": Queue(slots=16, spread=1.5, wait_s=0.5, requests=2000, capacity=10.69),
    "engine, TPOT": Queue(slots=256, spread=1.0, tpot_s=0.03, capacity=15.85),
    "engine, TPOT, equal lengths": Queue(slots=256, tpot_s=0.03, requests=1000, capacity=16.29),
    "engine, 32 slots": Queue(slots=32, spread=1.0, tpot_s=0.03, capacity=14.92),
}


def search(name: str, seed: int) -> tuple[float | None, float, float, int]:
    """One search: capacity, interval, probes."""
    queue = QUEUES[name]
    rng = np.random.default_rng([seed, sorted(QUEUES).index(name)])
    start = 0.75 * queue.saturated * math.exp(rng.normal(0, 0.02))
    searching, probes = CapacitySearch(start=start, target=queue.target, most=PROBES), list[Probe]()
    while (rate := searching.next_rate(probes)) is not None:
        probes.append(queue.probe(rng, rate, queue.requests))
    found = searching.result(probes)
    return found.rate, found.low, found.high, len(probes)


def told(name: str, runs: list[tuple[float | None, float, float, int]]) -> dict[str, str | int | float]:
    truth = QUEUES[name].capacity
    rates = np.array([rate or math.nan for rate, *_ in runs])
    errors = 100 * (rates / truth - 1)
    widths = [50 * (high - low) / rate for rate, low, high, _ in runs if rate]
    return {
        "queue": name,
        "runs": len(runs),
        "within_5pct": int((abs(errors) <= 5).sum()),
        "error_mean_pct": round(float(np.nanmean(errors)), 2),
        "error_sd_pct": round(float(np.nanstd(errors)), 2),
        "interval_holds": round(float(np.mean([low <= truth <= high for _, low, high, _ in runs])), 3),
        "half_width_pct": round(float(np.mean(widths)), 1),
        "probes": round(float(np.mean([number for *_, number in runs])), 1),
    }


def missing(name: str) -> float:
    """Share of a million requests at the capacity that miss the level; without the first ten thousand."""
    queue = QUEUES[name]
    uses = np.array(queue.probe(np.random.default_rng(11), queue.capacity, 1_000_000).uses)
    return float((uses[10_000:] > 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=QUEUES, default=list(QUEUES), metavar="NAME")
    parser.add_argument("--check", action="store_true", help="check the true capacities instead")
    options = parser.parse_args()
    if options.check:
        for name in options.only:
            print(f"{name}: {missing(name):.2%} miss the level, {1 - QUEUES[name].target:.0%} expected")
        return
    began, rows, held = time.monotonic(), [], []
    with ProcessPoolExecutor(options.jobs) as pool:
        for name in options.only:
            seeds = range(options.first, options.first + options.runs)
            rows.append(told(name, list(pool.map(partial(search, name), seeds))))
            held.append(float(rows[-1]["interval_holds"]))
            print(json.dumps(rows[-1]), flush=True)
    print(
        json.dumps(
            {
                "queues": len(rows),
                "interval_holds": round(float(np.mean(held)), 3),
                "interval_holds_least": min(held),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
