"""This run against stored ones: what looks suspicious, and the relative gate that answers it where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.errors import VllmPerfError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.history import StoredRun, StoredRuns
    from pytest_vllmperf.comparison import Comparison
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.domain.series import Point, SeriesFinding
    from pytest_vllmperf.experiment import Asked, Launch
    from pytest_vllmperf.session import Session

__all__ = ["last_good", "look_back"]


def look_back(run: Session, earlier: StoredRuns, *, confirm: bool) -> Section | None:
    """The section that holds this run against stored ones; None where there is nothing to compare with.

    A suspicion never fails a run. With ``--vllmperf-confirm`` (and ``confirm``) it makes the last good engine and the
    current one be launched alternately, and that comparison may.
    """
    from pytest_vllmperf.adapters.accepted_shifts import FILE, read_shifts
    from pytest_vllmperf.domain.series import examine
    from pytest_vllmperf.trends import history_section, series_of

    notes = list(earlier.warnings)
    try:
        accepted = read_shifts(run.options.root / FILE)
    except VllmPerfError as error:
        accepted = ()
        notes.append(str(error))
    findings = [examine(series) for series in series_of([*earlier.runs, _this_run(run)], accepted=accepted)]
    if confirm and run.options.judging.confirm:
        suspicious = [f for f in findings if f.history.suspicious or f.trend.step is not None]
        notes += _confirm(run, suspicious)
    return history_section(findings, notes)


def _this_run(run: Session) -> StoredRun:
    from pytest_vllmperf import conclusion
    from pytest_vllmperf.adapters import history

    summaries = tuple(run.evidence.summaries.values())
    extra = conclusion.history_extra(
        run.evidence,
        run.environment,
        started_at=run.started_at.isoformat(),
        exit_code=0,
        no_baseline=run.options.quick,
        fingerprints={},
        conditions={f"{s.engine}/{s.workload}": conclusion.conditions_of(run, s) for s in summaries},
        subjects={f"{s.engine}/{s.workload}": conclusion.subject_of(run, s) for s in summaries},
    )
    return history.as_stored(summaries, extra=extra, when=run.started_at.isoformat())


def _confirm(run: Session, suspicious: Sequence[SeriesFinding]) -> list[str]:
    """Compare each suspicious engine with its last good self; what stands in the way is told, and fails nothing."""
    from pytest_vllmperf.comparison import compare, pooled_launches
    from pytest_vllmperf.sending import Evidence

    notes = []
    for engine in dict.fromkeys(f.series.engine for f in suspicious):
        mine = [f for f in suspicious if f.series.engine == engine]
        before = last_good(run.engines.get(engine), mine[0].series.points)
        if isinstance(before, str):
            notes.append(f"{engine} looks suspicious and was not compared with its last good self: {before}")
            continue
        launches: list[Launch] = []
        evidence = Evidence()
        try:
            plan = _plan(run, before, mine)
            run.progress(plan.announce(None))
            found = compare(plan, run.launcher, progress=run.progress, keep=launches.append)
        except VllmPerfError as error:
            notes.append(f"{engine} looks suspicious, and its last good self could not be measured: {error}")
        else:
            evidence.verdicts += found.verdicts
        for summary in pooled_launches(launches, experiment=f"{before.name}:{engine}"):
            evidence.add_summary(summary)
        for name in (before.name, engine):
            evidence.engines.update(run.launched(name))
        run.add_evidence(evidence, worker="main")
    return notes


def last_good(engine: EngineConfig | None, points: Sequence[Point]) -> EngineConfig | str:
    """The engine as it was in the latest run with another subject, or why it cannot be launched again."""
    if engine is None:
        return "it is not declared here"
    now = points[-1].subject
    keys = ("vllm", "args", "env", "python", "command")
    then = next((p.subject for p in reversed(points[:-1]) if any(p.subject.get(k) != now.get(k) for k in keys)), None)
    if then is None:
        return "vLLM and its flags are those of every stored run, so the machine, or what runs on it, has changed"
    if then.get("vllm") != now.get("vllm") and then.get("python") == now.get("python"):
        return (
            f"vLLM {then.get('vllm')} is not installed any more; keep it in an environment of its own, declare an "
            "engine with python= its interpreter, and compare the two by --vllmperf-compare"
        )
    args, env, command = then.get("args"), then.get("env"), then.get("command")
    if not isinstance(args, dict) or not isinstance(env, dict):
        return "the stored run does not tell its flags"
    if "[redacted]" in env.values():
        return "its environment held a secret, which is not stored"
    python = then.get("python")
    return replace(
        engine,
        name=f"{engine.name}.before",
        args=args,
        env=env,
        cpu_args={},
        gpu_args={},
        cpu_env={},
        python=python if isinstance(python, str) else None,
        command=tuple(map(str, command)) if isinstance(command, (list, tuple)) else None,
    )


def _plan(run: Session, before: EngineConfig, findings: Sequence[SeriesFinding]) -> Comparison:
    from pytest_vllmperf.comparison import Comparison
    from pytest_vllmperf.domain.thresholds import Subject, resolve_tolerance

    candidate = run.engines[findings[0].series.engine]
    asked: dict[str, Asked] = {}
    limits = {}
    for workload in dict.fromkeys(f.series.workload for f in findings):
        if workload != "startup":
            asked[workload] = run.quality_task(workload) if workload in run.tasks else run.workload(workload)
        subject = Subject(
            hardware=run.environment.hardware,
            model=candidate.model_name,
            engine=candidate.name,
            workload=workload,
        )
        metrics = [f.series.metric for f in findings if f.series.workload == workload]
        limits[workload] = tuple(resolve_tolerance(run.thresholds, subject, metric) for metric in metrics)
    return Comparison(
        baseline=before,
        candidate=candidate,
        asked=tuple(asked.values()),
        limits=limits,
        pairs=run.options.judging.pairs,
        confirm=True,
    )
