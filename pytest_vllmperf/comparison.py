"""The relative gate: two engines launched alternately, judged at fixed looks, stopped as soon as all is decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.comparison import (
    Judged,
    Sides,
    confirmed,
    judge_questions,
    judge_replicates,
    question_looks,
)
from pytest_vllmperf.domain.looks import Looks
from pytest_vllmperf.domain.paired import PAIR_LOOKS, Side, abba_order
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.quality_gate import QUESTION_LOOKS
from pytest_vllmperf.domain.replicates import pooled
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Verdict

if TYPE_CHECKING:
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.experiment import Asked, Launch, Launcher

__all__ = ["Compared", "Comparison", "compare", "pooled_launches"]

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison launches, measures and judges.

    Args:
        baseline, candidate: The two engines.
        asked: Workloads and quality tasks, in order of measurement.
        limits: What is judged of each, by its name; ``startup`` is measured with every launch.
        pairs: Launches of each engine at most.
        seed: Decides who comes first in which pair.
        confirm: Whether each FAIL is repeated once with fresh launches.
    """

    baseline: EngineConfig
    candidate: EngineConfig
    asked: tuple[Asked, ...]
    limits: Mapping[str, tuple[Limit, ...]]
    pairs: int = PAIR_LOOKS.budget
    seed: int = 0
    confirm: bool = False

    @property
    def name(self) -> str:
        """As on the command line: ``baseline:max-perf``."""
        return f"{self.baseline.name}:{self.candidate.name}"

    @property
    def looks(self) -> Looks:
        """Pairs after which it is judged."""
        return PAIR_LOOKS.within(self.pairs)

    def announce(self, pair_s: float | None) -> str:
        """What is going to be launched; ``pair_s`` is how long a pair is expected to take, None where nothing tells."""
        least, most = self._pairs_to_look
        what = ", ".join(self.limits)
        took = "" if pair_s is None else f", about {_minutes(least * pair_s)} to {_minutes(most * pair_s)}"
        again = ", and as many again for what fails (--vllmperf-confirm)" if self.confirm else ""
        unknown = "; the first pair will tell how long that takes" if pair_s is None else ""
        return (
            f"{self.name}: {2 * least} to {2 * most} launches{took}{again}: pairs in ABBA order, {self._looks_told}, "
            f"on {what}{unknown}"
        )

    @property
    def only_answers(self) -> bool:
        """Whether nothing but answers is judged, which is done after each pair: more questions with every one."""
        tasks = {what.name for what in self.asked if isinstance(what, QualityTask)}
        return set(self.limits) <= tasks

    @property
    def _question_looks(self) -> tuple[int, ...]:
        """Questions after which answers are judged, of the task that has most of them."""
        tasks = [what for what in self.asked if isinstance(what, QualityTask)]
        plans = [question_looks(task.questions or QUESTION_LOOKS.budget).at for task in tasks]
        return max(plans, key=len, default=())[: self.pairs]

    @property
    def _pairs_to_look(self) -> tuple[int, int]:
        """Pairs until the first look, and to the last."""
        return (1, len(self._question_looks)) if self.only_answers else (self.looks.at[0], self.looks.budget)

    @property
    def _looks_told(self) -> str:
        answers = f"at answers after {', '.join(map(str, self._question_looks))} questions, one look for each pair"
        if self.only_answers:
            return f"looks {answers}"
        looks = f"looks after {', '.join(map(str, self.looks.at))} pairs"
        return f"{looks} (and {answers})" if self._question_looks else looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a comparison came to: a verdict for each metric of each thing measured."""

    plan: Comparison
    verdicts: tuple[Verdict, ...]


def compare(plan: Comparison, launcher: Launcher, *, progress: Progress, keep: Callable[[Launch], None]) -> Compared:
    """Launch pairs until every metric is decided or the budget is used up; then confirm each FAIL where asked.

    A metric is judged at every look until it passes or fails; what is decided is not measured again.

    Args:
        plan: What to compare.
        launcher: Launches, measures, stops.
        progress: Called with short lines about what is going on.
        keep: Called with each launch as soon as it is measured: what was measured outlives a failure of the next.

    Raises:
        EngineError, MeasurementError, ConfigError: See :meth:`~pytest_vllmperf.experiment.Launcher.measure`.
    """
    gate = _Gate(plan=plan, launcher=launcher, progress=progress, keep=keep)
    verdicts = gate.run(plan.limits)
    failed = {
        name: tuple(limit for limit in limits if verdicts[name, limit.metric].outcome is Outcome.FAIL)
        for name, limits in plan.limits.items()
    }
    failed = {name: limits for name, limits in failed.items() if limits}
    if plan.confirm and failed:
        told = ", ".join(f"{limit.metric} of {name}" for name, limits in failed.items() for limit in limits)
        progress(f"{plan.name}: repeating with fresh launches what failed: {told}")
        again = replace(plan, seed=plan.seed + 1)
        repeated = _Gate(plan=again, launcher=launcher, progress=progress, keep=keep)
        verdicts.update({key: confirmed(verdicts[key], v) for key, v in repeated.run(failed).items()})
    return Compared(plan=plan, verdicts=(*verdicts.values(), *gate.failures()))


def pooled_launches(launches: Sequence[Launch], *, experiment: str) -> tuple[Summary, ...]:
    """Every measurement with the launches of each engine pooled; of answers those to the most questions."""
    found = []
    for engine, name in dict.fromkeys((launch.engine, name) for launch in launches for name in launch.summaries):
        parts = [x.summaries[name] for x in launches if x.engine == engine and name in x.summaries]
        kept = [max(parts, key=lambda s: s.requests)] if parts[0].kind == "quality" else parts
        found.append(pooled(kept, kind="launch", experiment=experiment))
    return tuple(found)


@dataclass(slots=True, kw_only=True)
class _Gate:
    """One run of pairs, and what it has gathered."""

    plan: Comparison
    launcher: Launcher
    progress: Progress
    keep: Callable[[Launch], None]
    launches: dict[Side, list[Launch]] = field(default_factory=lambda: {"baseline": [], "candidate": []})

    def run(self, limits: Mapping[str, Sequence[Limit]]) -> dict[tuple[str, str], Verdict]:
        """Launch and judge; verdicts by name of what was asked and metric."""
        found: dict[tuple[str, str], Judged | None] = {
            (n, x.metric): None for n, group in limits.items() for x in group
        }
        began = time.monotonic()
        for number, pair in enumerate(abba_order(self.plan.pairs, self.plan.seed), start=1):
            wanted = {name for (name, _), judged in found.items() if judged is None or judged.next_look is not None}
            for side in pair:
                self._launch(side, number, wanted)
            for name in wanted:
                for limit in limits[name]:
                    before = found[name, limit.metric]
                    if before is None or before.next_look is not None:
                        found[name, limit.metric] = self._judged(name, limit, number)
            undecided = [key for key, judged in found.items() if judged is not None and judged.next_look is not None]
            self._tell(number, len(found) - len(undecided), len(found), (time.monotonic() - began) / number)
            if not undecided:
                break
        return {key: judged.verdict for key, judged in found.items() if judged is not None}

    def _launch(self, side: Side, pair: int, wanted: set[str]) -> None:
        engine = self.plan.baseline if side == "baseline" else self.plan.candidate
        asked = [self._asked(what, pair) for what in self.plan.asked if what.name in wanted]
        self.progress(f"{self.plan.name}: pair {pair} of at most {self.plan.looks.budget}: {engine.name}")
        launch = self.launcher.measure(engine, asked)
        self.launches[side].append(launch)
        self.keep(launch)

    @staticmethod
    def _asked(what: Asked, pair: int) -> Asked:
        """Questions grow from look to look, one look for each pair; a load is the same in every launch.

        Each look's questions are a random draw, the same for both engines.
        """
        if not isinstance(what, QualityTask):
            return what
        looks = question_looks(what.questions or QUESTION_LOOKS.budget)
        asked = looks.at[min(pair, len(looks.at)) - 1]
        return replace(what, questions=None if what.questions is None and asked == looks.budget else asked)

    def _judged(self, name: str, limit: Limit, pairs: int) -> Judged:
        sides = Sides(baseline=self.plan.baseline.name, candidate=self.plan.candidate.name, workload=name)
        before, after = self.launches["baseline"][-pairs:], self.launches["candidate"][-pairs:]
        latest = after[-1].summaries[name]
        if latest.kind == "quality":
            return self._judged_answers(sides, limit, before[-1], after[-1])
        counts = [x.summaries[name].metrics[limit.metric].n for x in (*before, *after) if _has(x, name, limit.metric)]
        judged = judge_replicates(
            sides,
            limit,
            [launch.value(name, limit.metric) for launch in before],
            [launch.value(name, limit.metric) for launch in after],
            looks=self.plan.looks,
            samples=min(counts, default=0),
        )
        return _with_cause(judged, name, (*before, *after))

    def _judged_answers(self, sides: Sides, limit: Limit, before: Launch, after: Launch) -> Judged:
        name = sides.workload
        summaries = before.summaries[name], after.summaries[name]
        first, second = (summary.metrics[limit.metric].samples for summary in summaries)
        available = summaries[0].facts.get("questions_available")
        task = next(what for what in self.plan.asked if what.name == name)
        most = task.questions if isinstance(task, QualityTask) and task.questions else available
        looks = question_looks(most if isinstance(most, int) and most > 0 else QUESTION_LOOKS.budget)
        broken = any(summary.invalid for summary in summaries)
        judged = judge_questions(sides, limit, () if broken else first, () if broken else second, looks=looks)
        return _with_cause(judged, name, (before, after))

    def failures(self) -> tuple[Verdict, ...]:
        """Failed requests of each load, judged whether a limit asks for it or not: latencies of survivors are none."""
        verdicts = []
        for what in self.plan.asked:
            if isinstance(what, QualityTask) or any(x.metric == "error_rate" for x in self.plan.limits[what.name]):
                continue
            sides = Sides(baseline=self.plan.baseline.name, candidate=self.plan.candidate.name, workload=what.name)
            rates = [
                [
                    launch.value(what.name, "error_rate")
                    for launch in self.launches[side]
                    if what.name in launch.summaries
                ]
                for side in ("baseline", "candidate")
            ]
            judged = judge_replicates(sides, _NO_MORE_FAILURES, *rates, looks=Looks(at=(1,)))
            if judged.verdict.outcome is Outcome.FAIL:
                verdicts.append(replace(judged.verdict, built_in=True))
        return tuple(verdicts)

    def _tell(self, number: int, decided: int, total: int, pair_s: float) -> None:
        looks = (number + 1,) if self.plan.only_answers else self.plan.looks.at
        left = [look - number for look in looks if look > number]
        more = f"; a pair takes {_minutes(pair_s)}, {_minutes(left[0] * pair_s)} to the next look" if left else ""
        self.progress(f"{self.plan.name}: {number} pairs, {decided} of {total} metrics decided{more}")


_NO_MORE_FAILURES = Limit(
    metric="error_rate",
    maximum=None,
    minimum=None,
    tolerance=0.0,
    required=False,
    where="built in (compare error_rate with a tolerance to allow some)",
    text="no more failed requests",
)


def _has(launch: Launch, name: str, metric: str) -> bool:
    summary = launch.summaries.get(name)
    return summary is not None and metric in summary.metrics


def _with_cause(judged: Judged, name: str, launches: Sequence[Launch]) -> Judged:
    """An INVALID verdict says what broke the measurement, not only that there is no value."""
    if judged.verdict.outcome is not Outcome.INVALID:
        return judged
    causes = (reason for launch in launches if name in launch.summaries for reason in launch.summaries[name].invalid)
    cause = next(causes, None)
    reason = judged.verdict.reason if cause is None else f"{judged.verdict.reason}: {cause}"
    return Judged(verdict=replace(judged.verdict, reason=reason), next_look=None)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
