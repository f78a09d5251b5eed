"""The state of one pytest session: the matrix, the limits, the pool, and what was measured.

One :class:`Session` lives in ``config.stash`` of every pytest process that has engines declared. What a
test measured and judged is gathered in its :class:`~pytest_vllmperf.sending.Evidence`.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import EngineConfigError, VllmPerfError, WorkloadError
from pytest_vllmperf.sending import Evidence, Sender

if TYPE_CHECKING:
    from pytest_vllmperf.asked import Options
    from pytest_vllmperf.capacity import FoundCapacity
    from pytest_vllmperf.comparison import Compared
    from pytest_vllmperf.domain.custom_metrics import CustomMetric
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.environment import Environment
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.domain.records import LoadRun
    from pytest_vllmperf.domain.redaction import Redactor
    from pytest_vllmperf.domain.report import EngineReport
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Subject, Thresholds
    from pytest_vllmperf.experiment import Asked, PoolLauncher
    from pytest_vllmperf.pool import EnginePool
    from pytest_vllmperf.proof import Proof

__all__ = ["Session"]

_OTHER_PROMPTS = 1_000_003
"""Added to a workload's seed for each earlier run of a reused engine; rounds and warm-up stay far below it."""

_SHORTEST_SECRET = 8
"""Shorter values (on, true, 1) of variables named like secrets stand in every report for something else."""

_ROUNDS = 3


@dataclass(kw_only=True)
class Session:
    """Everything the fixtures and hooks of one pytest process share."""

    options: Options
    engines: Mapping[str, EngineConfig]
    workloads: Mapping[str, Workload]
    tasks: Mapping[str, QualityTask]
    progress: Callable[[str], None]
    metrics: tuple[CustomMetric, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    started_at: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.timezone.utc))
    measured: dict[tuple[str, str], Summary] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    launches: dict[tuple[str, str], int] = field(default_factory=dict)
    comparisons: dict[str, Compared | VllmPerfError] = field(default_factory=dict)
    resumed: list[Mapping[str, Any]] = field(default_factory=list)
    """Lines of the journal of the run this one goes on with."""
    capacities: dict[tuple[str, str], tuple[Summary, FoundCapacity]] = field(default_factory=dict)
    loose: list[Summary] = field(default_factory=list)
    limits_sent: str | None = None
    sender: Sender = field(default_factory=Sender)

    @cached_property
    def selected_engines(self) -> dict[str, EngineConfig]:
        """The engines of this run: all, or those named by ``--vllmperf-engine``.

        Raises:
            EngineConfigError: A name on the command line is not in the matrix.
        """
        wanted = self.options.engines
        for name in wanted:
            if name not in self.engines:
                raise EngineConfigError(
                    f"--vllmperf-engine={name}: no such engine; declared: {', '.join(self.engines) or 'none'}"
                )
        return {n: e for n, e in self.engines.items() if not wanted or n in wanted}

    @cached_property
    def thresholds(self) -> Thresholds:
        """The limits, read and checked once in a run. A missing file means no limits unless one was named."""
        limits = self._limits_as_written()
        wanted = self.options.judging.inconclusive
        return limits if wanted is None else replace(limits, inconclusive=wanted)

    def _limits_as_written(self) -> Thresholds:
        if self.limits_sent is not None:
            return _limits_from_text(self.limits_sent)
        from pytest_vllmperf.adapters.threshold_file import read_thresholds
        from pytest_vllmperf.domain.thresholds import Thresholds

        path = self.options.thresholds_path
        if not path.exists() and path == self.options.root / "thresholds.toml":
            return Thresholds(quality_tasks={}, path=None)
        return read_thresholds(path, engines=self.engines, workloads=self.known_workloads, tasks=self.tasks)

    @property
    def judged_by(self) -> Thresholds:
        """The limits that verdicts come from: none of the file's while calibrating, which judges nothing by them."""
        return replace(self.thresholds, tables=()) if self.options.judging.calibrate else self.thresholds

    def limits_as_text(self) -> str:
        """The limits, for a worker's ``limits_sent``."""
        import msgspec

        return msgspec.json.encode(self.thresholds).decode()

    def add_evidence(self, evidence: Evidence, *, worker: str) -> None:
        """Take over what a test sent, on the controller. Launches are counted for each worker: one may crash."""
        self.launches.update({(worker, engine.name): engine.launches for engine in evidence.engines.values()})
        self.evidence.add(evidence)

    def engine_reports(self) -> tuple[EngineReport, ...]:
        """What became of each engine, in the order of the matrix, with its launches on all workers."""
        found = self.evidence.engines
        launches = {name: sum(n for (_, engine), n in self.launches.items() if engine == name) for name in found}
        names = dict.fromkeys((*self.selected_engines, *found))  # an experiment may launch others
        return tuple(replace(found[n], launches=launches[n]) for n in names if n in found)

    @cached_property
    def comparison_names(self) -> tuple[str, ...]:
        """What ``--vllmperf-compare`` asks for, as ``BASE:CANDIDATE``."""
        return tuple(f"{baseline}:{candidate}" for baseline, candidate in self.options.judging.compare)

    @cached_property
    def attribution_names(self) -> tuple[str, ...]:
        """What ``--vllmperf-attribute`` asks for, as ``BASE:CANDIDATE``."""
        return tuple(f"{base}:{candidate}" for base, candidate in self.options.judging.attribute)

    @cached_property
    def known_workloads(self) -> tuple[str, ...]:
        """What limits may name: every workload and task, the built-in ones whether declared or not."""
        from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS

        return (*self.workloads, *dict.fromkeys((*BUILT_IN_TASKS, *self.tasks)), "startup", "sleep", *self._recorded)

    @property
    def _recorded(self) -> tuple[str, ...]:
        """What stands in the workload's place where tests record metrics of their own."""
        return tuple(dict.fromkeys(own.workload for own in self.metrics if own.compute is None))

    @cached_property
    def environment(self) -> Environment:
        """Facts of this machine. The first use looks for GPUs, so collecting tests never asks."""
        from pytest_vllmperf.adapters.environment import gather_environment
        from pytest_vllmperf.adapters.gpu import driver_version, list_gpus, problem

        gpu_problem = problem()
        if gpu_problem:
            self.progress(gpu_problem)
        return gather_environment(self.options.root, gpus=list_gpus(), driver=driver_version(), gpu_problem=gpu_problem)

    @cached_property
    def redactor(self) -> Redactor:
        """Knows this run's secrets: of the environment, of the engines' own, and each launch's key once it is made."""
        from pytest_vllmperf.domain.redaction import Redactor, secrets_in

        found = set(secrets_in(os.environ))
        for engine in self.engines.values():
            found |= secrets_in({**engine.env, **engine.cpu_env}, engine.command or ())
            if engine.api_key_env:
                found.add(os.environ.get(engine.api_key_env, ""))
        return Redactor(secret for secret in found if len(secret) >= _SHORTEST_SECRET)

    @cached_property
    def pool(self) -> EnginePool:
        """The launched engines of this process."""
        from pytest_vllmperf.adapters.engine_state import runtime_directory
        from pytest_vllmperf.adapters.host_budget import HostBudget
        from pytest_vllmperf.adapters.leases import HostLeases, lease_directory
        from pytest_vllmperf.keeping import Keeper
        from pytest_vllmperf.pool import EnginePool

        return EnginePool(
            engines=self.engines,
            environment=self.environment,
            directory=self.options.report_directory / "logs",
            progress=self.progress,
            leases=HostLeases(lease_directory(), share_cpu=self.options.share_cpu, project=str(self.options.root)),
            hide=self.redactor.add,
            budget=HostBudget(lease_directory(), project=str(self.options.root)),
            keeper=Keeper(
                runtime=runtime_directory(),
                reuse=self.options.reuse,
                project=str(self.options.root),
                device=self.environment.device,
                tell=self.progress,
            ),
        )

    def prove(self, handle: EngineHandle) -> Proof:
        """Look at a live engine for evidence of its optimisations; the latest look is the one reported."""
        from pytest_vllmperf.proof import prove

        self.proofs[handle.name] = prove(handle)
        return self.proofs[handle.name]

    def measure_on(self, handle: EngineHandle, asked: Asked, *, rounds: int | None = None) -> Summary:
        """Measure one workload or quality task on a live engine of this process, as options and limits file say."""
        from pytest_vllmperf.domain.status import show
        from pytest_vllmperf.experiment import measured_on

        if isinstance(asked, Workload):
            asked = self.fresh(handle, asked)
        try:
            return measured_on(
                handle,
                asked,
                gpu_uuids=self.pool.gpu_uuids(handle.name),
                quick=self.options.quick,
                data=self.options.data,
                answers=self.options.answers,
                rounds=self.rounds_of(asked) if rounds is None else rounds,
                metrics=self.metrics,
                progress=self.progress,
                keep=self._request_table(handle.name, asked.name) if "csv" in self.options.report_formats else None,
            )
        finally:
            show(self.progress, None)  # whatever happened: pytest's next word needs a line of its own

    def fresh(self, handle: EngineHandle, workload: Workload) -> Workload:
        """``workload`` with prompts that no earlier run has left in a reused engine's prefix cache."""
        uses = self.pool.uses(handle.name)
        return replace(workload, seed=workload.seed + _OTHER_PROMPTS * uses) if uses else workload

    def _request_table(self, engine: str, workload: str) -> Callable[[LoadRun], None]:
        """Writes the requests of a load run; of an engine launched several times the latest launch's stay."""
        from pytest_vllmperf.adapters.request_tables import requests_path, write_requests

        path = requests_path(self.options.report_directory, engine, workload)
        return lambda run: write_requests(run, path)

    def rounds_of(self, asked: Asked) -> int:
        """How many rounds one launch measures ``asked`` in.

        Without a GPU a closed loop is measured once unless more was asked for: there, every round takes as long as
        the whole workload does on a GPU many times over. An open loop's requests are divided, which takes no time.
        """
        wanted = self.options.judging.rounds or self.thresholds.rounds
        if self.options.quick:
            return 1
        if wanted is not None:
            return wanted
        return _ROUNDS if self.environment.device == "gpu" or getattr(asked, "open_loop", False) else 1

    @property
    def launch_budget(self) -> int:
        """How often each engine is launched at most for limits on levels."""
        asked = self.options.judging.launches
        if asked is None and self.options.judging.calibrate:
            from pytest_vllmperf.domain.calibration import LAUNCHES

            return max(LAUNCHES, self.thresholds.launches)
        return asked or self.thresholds.launches

    @cached_property
    def launcher(self) -> PoolLauncher:
        """Launches engines as often as an experiment asks."""
        from pytest_vllmperf.experiment import PoolLauncher

        return PoolLauncher(pool=self.pool, measure_one=partial(self.measure_on, rounds=1), look=self.prove)

    def launched(self, name: str) -> dict[str, EngineReport]:
        """What became of the engine ``name`` in this process, by name; empty when it was never asked for."""
        reports = [report for report in self.pool.reports() if report.name == name] if self.pool_started else []
        if proof := self.proofs.get(name):
            reports = [replace(r, evidence=proof.evidence, warnings=(*r.warnings, *proof.warnings)) for r in reports]
        return {report.name: report for report in reports}

    @property
    def pool_started(self) -> bool:
        """True once anything was launched."""
        return "pool" in self.__dict__

    def check_selected_workloads(self) -> None:
        """Check the names given by ``--vllmperf-workload``.

        Raises:
            WorkloadError: One is no workload, no quality task and not ``startup``.
        """
        for name in self.options.workloads:
            if name not in (*self.workloads, *self.tasks, "startup", "sleep", *self._recorded):
                raise WorkloadError(
                    f"--vllmperf-workload={name}: no such workload; known: "
                    f"{', '.join((*self.workloads, *self.tasks, 'startup', 'sleep'))}"
                )

    def selects(self, workload: str) -> bool:
        """Whether ``--vllmperf-workload`` leaves this workload, task or ``startup`` in the run."""
        return not self.options.workloads or workload in self.options.workloads

    def workload(self, workload: str | Workload) -> Workload:
        """Look a workload up by name, or take one as it is.

        Raises:
            WorkloadError: The name is unknown.
        """
        if isinstance(workload, Workload):
            return workload
        if workload not in self.workloads:
            raise WorkloadError(f"workload {workload!r} is unknown; known: {', '.join(self.workloads)}")
        return self.workloads[workload]

    def quality_task(self, task: str | QualityTask) -> QualityTask:
        """Look a task up by name, with the options of ``[quality.tasks.NAME]`` replaced; or take one as it is.

        Either way ``--vllmperf-quality`` decides how many questions are asked, where it is given.

        Raises:
            TaskError: The name is unknown, or an option cannot work.
        """
        from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS, at_level, task_with_options
        from pytest_vllmperf.errors import TaskError

        level = self.options.quality or ("quick" if self.options.quick else None)
        if isinstance(task, str):
            known = {**BUILT_IN_TASKS, **self.tasks}
            options = self.thresholds.quality_tasks
            if task not in known and task not in options:
                raise TaskError(
                    f"quality task {task!r} is unknown; known: {', '.join(known)}. Another one of lm-eval's is "
                    f"declared by [quality.tasks.{task}] in the thresholds file, or as a QualityTask"
                )
            task = task_with_options(task, options.get(task, {}), known=known)
        return task if level is None else at_level(task, level)

    def subject(self, summary: Summary) -> Subject:
        """The four keys that limits match on, for what ``summary`` measured here."""
        from pytest_vllmperf.domain.thresholds import Subject

        return Subject(
            hardware=self.environment.hardware, model=summary.model, engine=summary.engine, workload=summary.workload
        )

    def check_limits_resolve(self) -> None:
        """Find every tie between limits, and every task option that cannot work, before anything is launched.

        Raises:
            LimitTie: Two tables claim one value equally.
            TaskError: An option of ``[quality.tasks.*]`` cannot work.
        """
        from pytest_vllmperf.domain.thresholds import Subject, resolve

        hardware = self.environment.hardware
        metrics = {name for table in self.thresholds.tables for name in table.limits}
        for engine in self.selected_engines.values():
            for workload in self.known_workloads:
                subject = Subject(hardware=hardware, model=engine.model_name, engine=engine.name, workload=workload)
                for metric in sorted(metrics):
                    resolve(self.thresholds, subject, metric)
        for task in self.tasks:
            self.quality_task(task)


def _limits_from_text(text: str) -> Thresholds:
    import msgspec

    from pytest_vllmperf.domain.thresholds import Thresholds

    return msgspec.json.decode(text, type=Thresholds)
