"""Capacity: load a live engine at one rate after another until the largest that keeps a service level is known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.capacity import Capacity, CapacitySearch, CurvePoint, Probe
from pytest_vllmperf.domain.prompts import TraceReplay
from pytest_vllmperf.domain.rates import arrival_rate, service_uses
from pytest_vllmperf.domain.self_check import BOTTLENECK
from pytest_vllmperf.errors import ConfigError

if TYPE_CHECKING:
    from pytest_vllmperf.domain.records import LoadRun
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.workload import Workload

__all__ = ["SWEEP", "CapacityPlan", "FoundCapacity", "find_capacity"]

Drive = Callable[["Workload"], "tuple[Summary, LoadRun]"]
"""Measures one workload on the engine in question: its Summary, and the records behind it."""

SWEEP = (0.25, 0.5, 0.75, 1.2)
"""Shares of the capacity that are measured besides, so that the curve has a flat part and a steep one."""
_FROM_PILOT = 0.75
"""Share of the saturated throughput at which the search starts."""
_FEWEST = 50
_LEAST_LOADS = 4
_GIVEN_UP = 0.25
"""Failed requests, as a share, after which a probe ends early: the rate is hopeless by then."""
_HARMLESS = 0.05
"""Share of the tightest limit by which a client may be late."""
_FEWEST_ANSWERS = 10
"""So many answers, one after another, a probe is long: the engine starts empty, and fills at its own pace."""
_FEWEST_WAITS = 20
"""So many of the longest waits that the level allows: at 5 % above what the engine can sustain its queue grows to the
limit in that time. A shorter probe is a burst, which a queue takes at far higher rates."""
_LONGEST_S = 60.0
"""A probe is not made longer than this; the result then says by how much the capacity may be too high."""
_SEEDS = 104_729
"""Apart from each other's seeds: a prompt sent twice would be answered from the prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """What a capacity search does.

    Args:
        workload: What is sent, already resolved for the device; ``requests`` of it in each probe, or more where these
            would be over before a queue could build up. Its ``request_rate`` is where the search starts; without one,
            three quarters of what a closed loop at ``max_concurrency`` takes.
        target: Share of the requests that must meet the workload's service level.
        precision: Half the interval, relative, at which the search stops early.
        most: Loads at most, the pilot included and the sweep not.
        ceiling: The largest rate to try, req/s; None for no bound.
        sweep: Shares of the capacity measured afterwards for the curve, each for as long as a probe takes.
        budget_s: Nothing further is begun once it would end after this long; None for no bound.
    """

    workload: Workload
    target: float = 0.99
    precision: float = 0.03
    most: int = 12
    ceiling: float | None = None
    sweep: tuple[float, ...] = SWEEP
    budget_s: float | None = None

    def __post_init__(self) -> None:
        for share in self.sweep:
            if not (math.isfinite(share) and share > 0):
                raise ConfigError(f"capacity of {self.workload.name!r}: sweep={share!r} must be shares above 0")
        if self.most < _LEAST_LOADS:
            raise ConfigError(f"capacity of {self.workload.name!r}: most={self.most!r} must be {_LEAST_LOADS} or more")
        if not _limits_s(self.workload):
            raise ConfigError(
                f"capacity of {self.workload.name!r}: the workload states no service level; give it one, such as "
                "service_level=ServiceLevel(ttft_s=1.0, tpot_s=0.05)"
            )
        if isinstance(self.workload.prompts, TraceReplay):
            raise ConfigError(
                f"capacity of {self.workload.name!r}: a trace says itself when requests arrive, so no rate can be "
                "asked of it; take other prompts"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCapacity:
    """What a search came to.

    Args:
        plan: What was asked.
        capacity: The rate, its interval, and every probe.
        curve: Probes and sweep, by rate: what throughput and latency were.
        summaries: Of every load, in the order of measurement.
        warnings: What casts doubt.
        invalid: Why nothing here may be judged.
    """

    plan: CapacityPlan
    capacity: Capacity
    curve: tuple[CurvePoint, ...]
    summaries: tuple[Summary, ...]
    warnings: tuple[str, ...]
    invalid: tuple[str, ...]


def find_capacity(
    plan: CapacityPlan,
    drive: Drive,
    *,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> FoundCapacity:
    """Search the capacity of the engine that ``drive`` loads, and measure the curve around it.

    Raises:
        ConfigError: The plan asks for something impossible.
        MeasurementError, EngineError: Whatever ``drive`` raises; nothing is concluded from half a search.
    """
    return _Search(plan=plan, drive=drive, progress=progress, clock=clock).run()


@dataclass(slots=True, kw_only=True)
class _Search:
    """One search under way."""

    plan: CapacityPlan
    drive: Drive
    progress: Callable[[str], None]
    clock: Callable[[], float]
    probes: list[Probe] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    answer_s: float = 0.0
    """How long an answer took at most, where requests did not wait for more than the level allows."""
    began_s: float = 0.0

    def run(self) -> FoundCapacity:
        self.began_s = self.clock()
        search = self._start()
        while (rate := search.next_rate(self.probes)) is not None:
            requests = self._requests(rate)
            if self.probes and self._too_late(requests / rate):
                self.warnings.append(f"the budget ended the search after {len(self.probes)} probes")
                break
            self._tell(f"probe {len(self.probes) + 1} of {search.most} at most")
            self.probes.append(self._load(rate, requests))
        found = search.result(self.probes)
        self._tell(found.reason)
        if sustained := found.rate or found.low:
            self._doubt_length(sustained)
        if found.rate is not None:
            self._sweep(found.rate)
            if not found.confirmed:
                self.warnings.append("no second probe inside the interval confirmed the capacity")
        return FoundCapacity(
            plan=self.plan,
            capacity=found,
            curve=tuple(sorted(self.curve, key=lambda point: point.rate)),
            summaries=tuple(self.summaries),
            warnings=tuple(dict.fromkeys(self.warnings)),
            invalid=tuple(dict.fromkeys(self.invalid)),
        )

    def _start(self) -> CapacitySearch:
        """The search, from the workload's own rate or from a pilot."""
        plan, start, pilots = self.plan, self.plan.workload.request_rate, 0
        if start is None:
            start, pilots = self._pilot(), 1
        return CapacitySearch(
            start=start,
            target=plan.target,
            precision=plan.precision,
            most=plan.most - pilots,
            ceiling=plan.ceiling,
            clumping=plan.workload.burst_size / plan.workload.burstiness,
        )

    def _pilot(self) -> float:
        """Where to start: below what the engine takes from a closed loop, which no open loop can exceed for long."""
        self._tell("pilot: how many requests a second does a closed loop get through?")
        workload = self.plan.workload
        slots = workload.max_concurrency or 1
        summary, _ = self.drive(replace(workload, requests=max(3 * slots, _FEWEST), max_error_rate=_GIVEN_UP))
        self.summaries.append(summary)
        throughput = summary.metrics["request_throughput"].value
        if not throughput:
            raise ConfigError(
                f"capacity of {workload.name!r}: its pilot completed no request "
                f"({'; '.join(summary.invalid) or 'no throughput'}); see the engine's log"
            )
        self._took(summary)
        return _FROM_PILOT * throughput

    def _requests(self, rate: float) -> int:
        """How many a probe sends: what the workload says, and as many as come while a queue has time to build up."""
        budget_s = self.plan.budget_s
        longest_s = _LONGEST_S if budget_s is None else min(_LONGEST_S, budget_s / self.plan.most)
        return max(self.plan.workload.requests, math.ceil(rate * min(longest_s, self._needed_s())))

    def _needed_s(self) -> float:
        """How long a probe must be for a queue to build up."""
        return max(_FEWEST_ANSWERS * self.answer_s, _FEWEST_WAITS * _longest_wait_s(self.plan.workload))

    def _doubt_length(self, capacity: float) -> None:
        """Where a queue had no time to build up, the capacity is too high."""
        took_s, needed_s = self._requests(capacity) / capacity, self._needed_s()
        if took_s < 0.9 * needed_s:
            excess = (_longest_wait_s(self.plan.workload) or self.answer_s) / took_s
            self.warnings.append(
                f"a probe lasts {took_s:.3g} s and needs {needed_s:.3g} s at this service level for a queue to build "
                f"up: the capacity may be too high by {excess:.0%}; give the search more requests, a larger budget or "
                "a tighter limit"
            )

    def _took(self, summary: Summary) -> None:
        """Take how long the answers of a load took."""
        took = summary.metrics.get("e2el_mean")
        if took is not None and took.value is not None:
            self.answer_s = max(self.answer_s, took.value)

    def _load(self, rate: float, requests: int) -> Probe:
        """One open-loop load at one rate."""
        workload, number = self.plan.workload, len(self.summaries)
        asked = replace(
            workload,
            request_rate=rate,
            max_concurrency=None,
            requests=requests,
            requests_on_cpu=None,
            seed=workload.seed + _SEEDS * (number + 1),
            max_error_rate=max(workload.max_error_rate, _GIVEN_UP),
            until=None,
        )
        summary, run = self.drive(asked)
        assert workload.service_level is not None  # the plan checked it
        uses = service_uses(run, workload.service_level, open_loop=True) or (math.inf,)
        probe = Probe(rate=rate, uses=uses, arrived=arrival_rate(run))
        self._doubt(probe, summary, asked)
        self.summaries.append(summary)
        self.curve.append(_point(probe, summary))
        share = 1 - probe.missed
        if share >= self.plan.target:
            self._took(summary)
        self._tell(f"{rate:.3g} req/s: {share:.1%} of {len(uses)} requests met the service level")
        return probe

    def _doubt(self, probe: Probe, summary: Summary, asked: Workload) -> None:
        """What breaks a measurement breaks the search, unless it says no more than that the rate was too high.

        A client late by little of the level is no reason either: whether a request met it is all that counts here.
        """
        harmless = _lateness_s(summary) <= _HARMLESS * min(_limits_s(asked))
        for why in summary.invalid:
            told = self.invalid
            if probe.missed >= _GIVEN_UP or (harmless and BOTTLENECK in why):
                told = self.warnings
            told.append(f"at {probe.rate:.3g} req/s: {why}")

    def _sweep(self, capacity: float) -> None:
        """The rest of the curve; each rate for as long as a probe at the capacity takes."""
        for share in self.plan.sweep:
            rate, requests = share * capacity, max(_FEWEST, round(share * self._requests(capacity)))
            if self._too_late(requests / rate):
                self.warnings.append("the budget cut the sweep short: the curve has fewer points")
                return
            self._load(rate, requests)

    def _too_late(self, takes_s: float) -> bool:
        budget_s = self.plan.budget_s
        return budget_s is not None and self.clock() - self.began_s + takes_s > budget_s

    def _tell(self, text: str) -> None:
        self.progress(f"{self.plan.workload.name}: capacity: {text}")


def _point(probe: Probe, summary: Summary) -> CurvePoint:
    def value(name: str) -> float | None:
        found = summary.metrics.get(name)
        return None if found is None else found.value

    return CurvePoint(
        rate=probe.rate,
        requests=len(probe.uses),
        met=1 - probe.missed,
        request_throughput=value("request_throughput"),
        output_throughput=value("output_throughput"),
        ttft_mean=value("ttft_mean"),
        tpot_mean=value("tpot_mean"),
        e2el_mean=value("e2el_mean"),
    )


def _limits_s(workload: Workload) -> list[float]:
    """How long until the first token, or the last, each stated limit allows."""
    level = workload.service_level
    if level is None:
        return []
    paced_s = None if level.tpot_s is None else level.tpot_s * max(1, workload.output_tokens - 1)
    return [limit for limit in (level.ttft_s, paced_s, level.e2el_s) if limit is not None]


def _longest_wait_s(workload: Workload) -> float:
    """How long a request may wait for its turn; 0 where only its pace is limited."""
    level = workload.service_level
    return 0.0 if level is None else min((s for s in (level.ttft_s, level.e2el_s) if s is not None), default=0.0)


def _lateness_s(summary: Summary) -> float:
    """How late the client was at worst, sending and reading together; infinite where it did not tell."""
    lags = [summary.facts.get(f"client_{name}_lag_p99_s") for name in ("loop", "dispatch")]
    return sum(float(lag) if isinstance(lag, (int, float)) else math.inf for lag in lags)
