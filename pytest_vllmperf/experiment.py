"""Experiments: engines launched as often as a question needs, measured and stopped.

Everything that replicates launches (absolute limits over several launches, comparisons in pairs, attribution,
capacity, bisect) asks a :class:`Launcher` for one launch after the other and decides in between what to launch next.
An experiment owns its launches: "each engine is launched once" means once for each replicate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Union

from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.replicates import pooled, split_into_rounds
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.workload import Workload

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vllmperf.domain.custom_metrics import CustomMetric
    from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle
    from pytest_vllmperf.domain.records import LoadRun
    from pytest_vllmperf.pool import EnginePool

__all__ = ["Asked", "Launch", "Launcher", "PoolLauncher", "measured_on"]

Asked = Union[Workload, QualityTask]
"""What can be asked of a live engine: a load, or questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What one launch of one engine gave.

    Args:
        engine: The engine's name.
        number: How many times this engine was launched by now in this experiment, this one included.
        version: vLLM's version as the server tells it; None where it does not.
        summaries: By the name of what was asked; ``startup`` (how the launch went) is always there.
    """

    engine: str
    number: int
    version: str | None
    summaries: Mapping[str, Summary]

    def value(self, asked: str, metric: str) -> float | None:
        """One metric of this launch; None where it has no value, or the measurement is broken."""
        summary = self.summaries.get(asked)
        if summary is None or summary.invalid or metric not in summary.metrics:
            return None
        return summary.metrics[metric].value


class Launcher(Protocol):
    """Whatever can launch an engine, measure on it and stop it, again and again."""

    def measure(self, engine: EngineConfig, asked: Sequence[Asked]) -> Launch:
        """Launch ``engine`` afresh, measure all of ``asked`` in order, and stop it, whatever happens.

        ``engine`` need not be one of the matrix: an experiment may make configurations up, under names of their own.

        Raises:
            EngineError: It cannot be launched here, or it ended before everything was measured.
            WorkloadError, TaskError: What is asked does not fit the engine.
            MeasurementError: A measurement could not be made at all.
        """

    def launched(self, engine: EngineConfig) -> AbstractContextManager[EngineHandle]:
        """For ``with``: the live engine, launched afresh and stopped at the end (see :meth:`measure`)."""


@dataclass(slots=True, kw_only=True)
class PoolLauncher:
    """Launches through an :class:`~pytest_vllmperf.pool.EnginePool`, whose leases, logs and guardians it shares.

    Args:
        pool: Where engines are launched. Those of a matrix keep their names and logs.
        measure_one: Measures one thing on a live engine; see :func:`measured_on`.
        look: Called with each live engine before anything is measured, such as to gather proof of its flags.
    """

    pool: EnginePool
    measure_one: Callable[[EngineHandle, Asked], Summary]
    look: Callable[[EngineHandle], object] = lambda _handle: None

    def measure(self, engine: EngineConfig, asked: Sequence[Asked]) -> Launch:
        """See :meth:`Launcher.measure`."""
        from pytest_vllmperf.measurement import start_up_summary

        with self.launched(engine) as handle:
            summaries = {"startup": start_up_summary(handle)}
            for what in asked:
                summaries[what.name] = self.measure_one(handle, what)
                failed = bool(summaries[what.name].failures)
                self.pool.ensure_alive(
                    engine.name, serves=failed
                )  # a crash says more than the failed requests it leaves
            return Launch(
                engine=engine.name,
                number=self.pool.launches(engine.name),
                version=handle.version,
                summaries=summaries,
            )

    @contextmanager
    def launched(self, engine: EngineConfig) -> Iterator[EngineHandle]:
        """See :meth:`Launcher.launched`."""
        self.pool.add(engine)
        self.pool.renew(engine.name)
        try:
            handle = self.pool.acquire(engine.name)
            self.look(handle)
            yield handle
        finally:
            self.pool.renew(engine.name)  # whoever wants the engine next gets a launch of their own


_ROUND_SEEDS = 7919
"""Apart from each other's seeds, as whoever varies seeds by hand counts 0, 1, 2."""
_LEAST_PARTS = 3


def measured_on(
    handle: EngineHandle,
    asked: Asked,
    *,
    gpu_uuids: Sequence[str] = (),
    quick: bool = False,
    data: Path | None = None,
    answers: Path | None = None,
    rounds: int = 1,
    metrics: Sequence[CustomMetric] = (),
    progress: Callable[[str], None],
    keep: Callable[[LoadRun], None] | None = None,
) -> Summary:
    """Measure one workload or quality task on a live engine, with fewer requests and marked so when ``quick``.

    ``keep`` is handed the raw records of a load run; ``data`` is where quality tasks find their questions offline,
    ``answers`` where their answers are kept; ``metrics`` are computed beside the catalogue's.

    More than one of ``rounds`` gives an interval: a closed loop is repeated with other prompts and pooled; the requests
    of an open loop, which come one after the other anyway, are divided into as many parts, at least three.

    Raises:
        WorkloadError, TaskError: It does not fit this engine.
        LoadProcessError: The load process died; nothing was measured.
    """
    from pytest_vllmperf.domain.custom_metrics import with_custom_metrics
    from pytest_vllmperf.evaluation import evaluate
    from pytest_vllmperf.evaluation.telling import in_lines
    from pytest_vllmperf.measurement import measure, quick_form

    if isinstance(asked, QualityTask):
        progress(f"{handle.name}: {asked.name}: {asked.describe()}")
        speak = _questions_shown if hasattr(progress, "status") else in_lines  # plain functions only take lines
        told = speak(progress, f"{handle.name}: {asked.name}")
        return evaluate(handle, asked, data=data, store=answers, progress=told)

    def once(workload: Workload) -> Summary:
        runs: list[LoadRun] = []

        def kept(run: LoadRun) -> None:
            runs[:] = [run]
            if keep is not None:
                keep(run)

        hand = kept if metrics else keep
        summary = measure(handle, workload, gpu_uuids=gpu_uuids, progress=progress, keep=hand)
        return with_custom_metrics(summary, metrics, runs[0]) if runs else summary

    whole = asked.on(handle.device)
    shorter = quick_form(whole) if quick else whole
    if rounds > 1 and not shorter.open_loop:
        each = [replace(shorter, seed=shorter.seed + _ROUND_SEEDS * number) for number in range(rounds)]
        summary = pooled([once(workload) for workload in each], kind="round")
    else:
        summary = once(shorter)
    if rounds > 1 and shorter.open_loop:
        summary = split_into_rounds(summary, max(rounds, _LEAST_PARTS))
    if not quick:
        return summary
    note = f"quick run: {shorter.requests} of {whole.requests} requests (--vllmperf-quick), no baseline"
    return replace(summary, warnings=(*summary.warnings, note))


def _questions_shown(tell: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """Shows how many questions are answered."""
    import time

    from pytest_vllmperf.domain.status import Status, show

    began = time.monotonic()

    def answered(done: int, planned: int) -> None:
        elapsed = time.monotonic() - began
        show(tell, Status(what=what, done=done, planned=planned, elapsed_s=elapsed, unit="questions"))

    return answered
