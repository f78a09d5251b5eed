"""Bisect over a row of engines: each step is a relative gate against the good end, repeated once when inconclusive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_vllmperf.comparison import Comparison, compare
from pytest_vllmperf.domain.bisection import Bisection, Finding, Step
from pytest_vllmperf.domain.paired import PAIR_LOOKS
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Verdict
from pytest_vllmperf.errors import EngineError, EngineUnavailable, MeasurementError

if TYPE_CHECKING:
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.experiment import Asked, Launch, Launcher

__all__ = ["BisectPlan", "Bisected", "Trial", "bisect"]

Progress = Callable[[str], None]

_REPEATS = 2
"""Gates a step may take: one that stays INCONCLUSIVE is repeated once with fresh launches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BisectPlan:
    """What is searched.

    Args:
        engines: In order, the good one first and the bad one last; each has a name of its own.
        asked: What is measured on every launch.
        limits: What decides, by name of what was asked: a step is bad when any of them fails.
        pairs: Launches of each engine in one step at most.
        seed: Decides who comes first in which pair.
    """

    engines: tuple[EngineConfig, ...]
    asked: tuple[Asked, ...]
    limits: Mapping[str, tuple[Limit, ...]]
    pairs: int = PAIR_LOOKS.budget
    seed: int = 0

    def announce(self) -> str:
        """What is going to be launched."""
        steps = Bisection(length=len(self.engines)).most_steps + 1
        least, most = 2 * PAIR_LOOKS.within(self.pairs).at[0], 2 * self.pairs
        return (
            f"bisect: {len(self.engines)} environments, about {steps} steps of {least} to {most} launches on "
            f"{', '.join(self.limits)}; an inconclusive step is repeated once, then skipped"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One step: the engine tried against ``against``, and why it is held to be what it is."""

    engine: str
    against: str
    step: Step
    reasons: tuple[str, ...]
    launches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisected:
    """Where the search ended, and every step on the way; the last one confirms a first bad engine that was found.

    Args:
        finding: Places in the row.
        first_bad: The engine's name; None when it is not known.
        suspects: Names among which it is.
        trials: In order.
        sentence: The answer in words.
    """

    finding: Finding
    first_bad: str | None
    suspects: tuple[str, ...]
    trials: tuple[Trial, ...]
    sentence: str


def bisect(plan: BisectPlan, launcher: Launcher, *, progress: Progress) -> Bisected:
    """Search for the first bad engine; ends by comparing it with the one right before it.

    Raises:
        ConfigError: The row is too short.
        EngineUnavailable: This machine lacks what an engine requires.
        WorkloadError, TaskError: What is asked does not fit an engine.
    """
    return _Search(plan=plan, launcher=launcher, progress=progress).run()


@dataclass(slots=True, kw_only=True)
class _Search:
    plan: BisectPlan
    launcher: Launcher
    progress: Progress
    trials: list[Trial] = field(default_factory=list)

    def run(self) -> Bisected:
        engines = self.plan.engines
        bisection = Bisection(length=len(engines))
        self.progress(self.plan.announce())
        steps: dict[int, Step] = {}
        while (place := bisection.next_place(steps)) is not None:
            steps[place] = self._try(engines[place], engines[0])
        finding = bisection.finding(steps)
        if finding.first_bad is not None and finding.first_bad > 1:
            finding = self._confirmed(finding, finding.first_bad)
        suspects = tuple(engines[place].name for place in finding.suspects)
        first_bad = None if finding.first_bad is None else engines[finding.first_bad].name
        return Bisected(
            finding=finding,
            first_bad=first_bad,
            suspects=suspects,
            trials=tuple(self.trials),
            sentence=self._sentence(finding, first_bad, suspects),
        )

    def _confirmed(self, finding: Finding, place: int) -> Finding:
        """The answer, once it also fails against the one right before it."""
        step = self._try(self.plan.engines[place], self.plan.engines[place - 1])
        if step is Step.BAD:
            return finding
        told = "is not worse than" if step is Step.GOOD else "could not be told from"
        return Finding(
            first_bad=None, suspects=(), reason=f"does not know: the first that looked bad {told} the one before it"
        )

    def _try(self, engine: EngineConfig, against: EngineConfig) -> Step:
        """One step, repeated once when it is inconclusive."""
        launches = 0
        reasons: list[str] = []
        step: Step | None = None
        for repeat in range(_REPEATS):
            self.progress(f"bisect: {engine.name} against {against.name}" + (" once more" if repeat else ""))
            kept: list[Launch] = []
            step, reasons = self._gate(engine, against, repeat, kept)
            launches += len(kept)
            if step is not None:
                break
        found = Step.SKIPPED if step is None else step
        trial = Trial(engine=engine.name, against=against.name, step=found, reasons=tuple(reasons), launches=launches)
        self.trials.append(trial)
        self.progress(f"bisect: {engine.name} is {found.value}: {'; '.join(reasons)}")
        return found

    def _gate(
        self, engine: EngineConfig, against: EngineConfig, repeat: int, kept: list[Launch]
    ) -> tuple[Step | None, list[str]]:
        """What one gate says (None for INCONCLUSIVE), and why."""
        plan = Comparison(
            baseline=against,
            candidate=engine,
            asked=self.plan.asked,
            limits=self.plan.limits,
            pairs=self.plan.pairs,
            seed=self.plan.seed + 1000 * repeat + len(self.trials),
        )
        try:
            verdicts = compare(plan, self.launcher, progress=self.progress, keep=kept.append).verdicts
        except EngineUnavailable:
            raise
        except (EngineError, MeasurementError) as error:
            return Step.SKIPPED, [str(error).splitlines()[0]]
        return _step(verdicts), [v.reason for v in _telling(verdicts)]

    def _sentence(self, finding: Finding, first_bad: str | None, suspects: Sequence[str]) -> str:
        if first_bad is not None:
            before = self.plan.engines[self.plan.engines.index(self._named(first_bad)) - 1].name
            return f"first bad: {first_bad} ({before} is good); {'; '.join(self.trials[-1].reasons)}"
        among = f"; it is one of {', '.join(suspects)}" if suspects else ""
        return f"bisect {finding.reason}{among}"

    def _named(self, name: str) -> EngineConfig:
        return next(engine for engine in self.plan.engines if engine.name == name)


def _step(verdicts: Sequence[Verdict]) -> Step | None:
    outcomes = {v.outcome for v in verdicts}
    if Outcome.FAIL in outcomes:
        return Step.BAD
    if Outcome.INVALID in outcomes:
        return Step.SKIPPED
    return None if Outcome.INCONCLUSIVE in outcomes else Step.GOOD


def _telling(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts that decided: the failures, else what is broken, else what is open, else all."""
    for outcome in (Outcome.FAIL, Outcome.INVALID, Outcome.INCONCLUSIVE):
        if found := [v for v in verdicts if v.outcome is outcome]:
            return found
    return list(verdicts)
