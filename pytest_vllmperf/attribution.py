"""Attribution: launch two engines and those in between as a design of experiments says, and estimate what did it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.attribution import Attribution, Run, Wanted, attribute
from pytest_vllmperf.domain.factorial import Design, design_for, launch_order, main_contrasts
from pytest_vllmperf.domain.factors import Factor, differing, engine_at, learnt
from pytest_vllmperf.errors import ConfigError, EngineConfigError, EngineError, EngineUnavailable

if TYPE_CHECKING:
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.experiment import Asked, Launch, Launcher

__all__ = ["Attributed", "AttributionPlan", "rounds_for", "take_apart"]

Progress = Callable[[str], None]

_PRECISION = 0.25
"""Variance of a main effect, over that of one launch, that the number of rounds aims at."""
_LEAST_ROUNDS = 2
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionPlan:
    """What an attribution launches and measures.

    Args:
        base, candidate: The two engines, as launched on this device (see ``EngineConfig.on``).
        asked: What is measured on every launch, in order.
        wanted: The metrics to attribute.
        budget_s: Time for all launches; None for no bound.
        rounds: Launches of every engine; None for as many as the design needs (see :func:`rounds_for`).
        seed: Decides the order of launches.
    """

    base: EngineConfig
    candidate: EngineConfig
    asked: tuple[Asked, ...]
    wanted: tuple[Wanted, ...]
    budget_s: float | None = None
    rounds: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.base.name}:{self.candidate.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributed:
    """What an attribution came to.

    Args:
        plan: What was asked for.
        factors: As they were in the end: what turned out to belong together is one.
        design: The points launched.
        engines: The engine of each point.
        runs: Every launch that counts.
        result: The effects.
        warnings: What could not be launched, what the budget cut off, what was learnt.
    """

    plan: AttributionPlan
    factors: tuple[Factor, ...]
    design: Design
    engines: tuple[EngineConfig, ...]
    runs: tuple[Run, ...]
    result: Attribution
    warnings: tuple[str, ...]


def rounds_for(design: Design) -> int:
    """Rounds after which every main effect is known to half the spread of one launch."""
    weights = main_contrasts(design)
    variance = max(float(w @ w) for w in weights if w is not None)
    return max(_LEAST_ROUNDS, math.ceil(variance / _PRECISION - 1e-9))


def take_apart(
    plan: AttributionPlan,
    launcher: Launcher,
    *,
    progress: Progress,
    keep: Callable[[Launch], None] = lambda _launch: None,
    clock: Callable[[], float] = time.monotonic,
) -> Attributed:
    """Launch, measure and estimate.

    Both ends are launched once beforehand, uncounted: that proves that they start, warms caches, and times the plan,
    whose cost is told before it begins. A combination that cannot start teaches which settings belong together where
    its failure has a known hint, and is left out otherwise.

    Args:
        plan: What to take apart.
        launcher: Launches, measures, stops.
        progress: Called with short lines about what is going on.
        keep: Called with each launch of base and candidate that counts.
        clock: Seconds of a monotonic clock.

    Raises:
        ConfigError: The engines do not differ, differ in too much, or the budget does not hold the plan.
        EngineError: Base or candidate cannot be launched, or ended while it was measured.
        MeasurementError: A measurement could not be made at all.
    """
    return _Experiment(plan=plan, launcher=launcher, progress=progress, keep=keep, clock=clock).run()


@dataclass(slots=True, kw_only=True)
class _Experiment:
    """One attribution under way."""

    plan: AttributionPlan
    launcher: Launcher
    progress: Progress
    keep: Callable[[Launch], None]
    clock: Callable[[], float]
    factors: tuple[Factor, ...] = ()
    design: Design = field(init=False)
    engines: tuple[EngineConfig, ...] = ()
    runs: list[Run] = field(default_factory=list)
    gone: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    began_s: float = 0.0
    launch_s: float = 0.0

    def run(self) -> Attributed:
        self._plan_for(differing(self.plan.base, self.plan.candidate))
        self.began_s = self.clock()
        self.progress(
            f"{self.plan.name}: {len(self.factors)} settings differ: {'; '.join(f.text for f in self.factors)}"
        )
        self._pilot()
        rounds = self._rounds()
        while not self._launch_all(rounds):
            pass
        result = attribute(self.design, self.factors, self.runs, self.plan.wanted)
        return Attributed(
            plan=self.plan,
            factors=self.factors,
            design=self.design,
            engines=self.engines,
            runs=tuple(self.runs),
            result=result,
            warnings=tuple(self.warnings),
        )

    def _plan_for(self, factors: tuple[Factor, ...]) -> None:
        """Take ``factors`` up; launches made before count where they are points of the new design as well."""
        before = {id(run): self._settings(run.point) for run in self.runs}
        self.factors, self.design = factors, design_for(len(factors))
        names = _point_names(self.plan, self.design, factors)
        self.engines, self.gone = (), {}
        engines: list[EngineConfig] = []
        for place, name in enumerate(names):
            engine = self._engine(place, name)
            if isinstance(engine, EngineConfigError):
                self._give_up(place, str(engine))
            engines.append(replace(self.plan.base, name=name) if isinstance(engine, EngineConfigError) else engine)
        self.engines = tuple(engines)
        places = {frozenset(self._settings(place)): place for place in range(len(self.design.points))}
        moved = [(run, places.get(frozenset(before[id(run)]))) for run in self.runs]
        self.runs = [replace(run, point=place) for run, place in moved if place is not None]

    def _engine(self, place: int, name: str) -> EngineConfig | EngineConfigError:
        """The engine of a point, or why there cannot be one; the ends are themselves."""
        if place in (0, len(self.design.points) - 1):
            return self.plan.candidate if place else self.plan.base
        try:
            return engine_at(self.plan.base, self.plan.candidate, self.factors, self.design.points[place], name=name)
        except EngineConfigError as error:
            return error

    def _settings(self, point: int) -> tuple[str, ...]:
        """Names of the settings that are on at a point."""
        on = self.design.points[point]
        return tuple(s.name for factor, o in zip(self.factors, on, strict=True) if o for s in factor.settings)

    def _pilot(self) -> None:
        """Launch both ends once, which must work."""
        self.progress(f"{self.plan.name}: both ends first, uncounted: do they start, and how long does a launch take?")
        for engine in (self.engines[0], self.engines[-1]):
            began = self.clock()
            self.launcher.measure(engine, self.plan.asked)
            self.launch_s = max(self.launch_s, self.clock() - began)

    def _rounds(self) -> int:
        """As many rounds as wanted, or as the budget holds; says so before the first."""
        points = len(self.design.points) - len(self.gone)
        wanted = self.plan.rounds or rounds_for(self.design)
        rounds = wanted
        if self.plan.budget_s is not None:
            left_s = self.plan.budget_s - (self.clock() - self.began_s)
            rounds = min(wanted, int(left_s / (points * self.launch_s)))
            if rounds < min(wanted, _LEAST_ROUNDS):
                needed = _minutes(self.clock() - self.began_s + _LEAST_ROUNDS * points * self.launch_s)
                raise ConfigError(
                    f"{self.plan.name}: a budget of {_minutes(self.plan.budget_s)} is too little for {_LEAST_ROUNDS} "
                    f"rounds of {points} launches, each {_minutes(self.launch_s)}: give {needed} at least "
                    "(--vllmperf-budget), a shorter workload (--vllmperf-quick), or fewer settings "
                    "(EngineConfig(together=…))"
                )
        fewer = f", {wanted} rounds would be better" if rounds < wanted else ""
        total = points * rounds
        self.progress(
            f"{self.plan.name}: plan: {self.design.kind}, {points} engines × {rounds} rounds = {total} launches, about "
            f"{_minutes(total * self.launch_s)} ({_minutes(self.launch_s)} each){fewer}"
        )
        if fewer:
            self.warnings.append(f"the budget holds {rounds} of {wanted} rounds: intervals are wider")
        return rounds

    def _launch_all(self, rounds: int) -> bool:
        """Launch what is missing of the plan; False when a failure taught something and the plan is another now."""
        done = {(run.round, run.point) for run in self.runs}
        total = rounds * (len(self.design.points) - len(self.gone))
        for number, order in enumerate(launch_order(len(self.design.points), rounds, self.plan.seed)):
            for point in order:
                if (number, point) in done or point in self.gone:
                    continue
                if self._out_of_time():
                    self.warnings.append(f"the budget ended the plan after {len(self.runs)} of {total} launches")
                    return True
                self.progress(
                    f"{self.plan.name}: launch {len(self.runs) + 1} of {total}, round {number + 1}: "
                    f"{self.engines[point].name}"
                )
                if not self._launch(number, point):
                    return False
        return True

    def _launch(self, number: int, point: int) -> bool:
        """One launch; False when its failure changed the plan."""
        engine, began = self.engines[point], self.clock()
        try:
            launch = self.launcher.measure(engine, self.plan.asked)
        except EngineUnavailable:
            raise
        except EngineError as error:
            if point in (0, len(self.engines) - 1):
                raise
            merged = learnt(self.factors, str(error))
            if merged is not None:
                names = ", ".join(f.name for f in merged if f not in self.factors)
                self._warn(f"{engine.name} does not start: {names} belong together and count as one from here on")
                self._plan_for(merged)
                return False
            self._give_up(point, str(error).splitlines()[0])
            return True
        self.launch_s += (self.clock() - began - self.launch_s) / 4
        if point in (0, len(self.engines) - 1):
            self.keep(launch)
        wanted = [(w.workload, w.metric) for w in self.plan.wanted]
        values: Mapping[tuple[str, str], float | None] = {key: launch.value(*key) for key in wanted}
        self.runs.append(Run(round=number, point=point, values=values))
        return True

    def _out_of_time(self) -> bool:
        budget_s = self.plan.budget_s
        return budget_s is not None and self.clock() - self.began_s + self.launch_s > budget_s

    def _give_up(self, point: int, why: str) -> None:
        self.gone[point] = why
        on = ", ".join(self._settings(point))
        self._warn(f"an engine with {on} and nothing else of the candidate is left out: {why}")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress(f"{self.plan.name}: {text}")


def _point_names(plan: AttributionPlan, design: Design, factors: Sequence[Factor]) -> list[str]:
    """A name for each point that says what it is: ``base.with.x``, ``candidate.without.y``, else its switches."""
    names: list[str] = []
    for point in design.points:
        on = [f.name for f, o in zip(factors, point, strict=True) if o]
        off = [f.name for f, o in zip(factors, point, strict=True) if not o]
        if not on or not off:
            name = plan.candidate.name if on else plan.base.name
        elif len(on) == 1:
            name = f"{plan.base.name}.with.{on[0]}"
        elif len(off) == 1:
            name = f"{plan.candidate.name}.without.{off[0]}"
        else:
            name = f"{plan.base.name}.with." + "".join(str(int(o)) for o in point)
        legal = re.sub(r"[^A-Za-z0-9_.-]", ".", name)
        switches = "".join(str(int(o)) for o in point)
        names.append(legal if len(legal) <= _LONGEST_NAME else f"{legal[: _LONGEST_NAME - 25]}.{switches}")
    return names


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
