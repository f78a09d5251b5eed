"""What a run comes to, or several that are joined: problems, places, and what history keeps beside the values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.sending import Evidence

if TYPE_CHECKING:
    from pytest_vllmperf.domain.environment import Environment
    from pytest_vllmperf.domain.gate import RunOutcome
    from pytest_vllmperf.domain.report import EngineReport
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Thresholds
    from pytest_vllmperf.session import Session

__all__ = [
    "by_hardware",
    "conditions_of",
    "fingerprint",
    "history_extra",
    "nothing_judged",
    "other_failures",
    "subject_of",
    "told_places",
    "unrecorded_limits",
]

SOUND = (0, 11, 12)
"""Exit codes of runs that measured to the end and missed nothing: fine, inconclusive, nothing judged."""


def by_hardware(evidence: Evidence, here: Environment) -> dict[str, Evidence]:
    """What was found on each kind of hardware; an engine whose place nobody told of ran ``here``."""
    hardware = {name: evidence.places.get(name, here).hardware for name in evidence.engines}
    parts: dict[str, Evidence] = {here.hardware: Evidence()}

    def part(engine: str) -> Evidence:
        return parts.setdefault(hardware.get(engine, here.hardware), Evidence())

    for name, engine in evidence.engines.items():
        part(name).engines[name] = engine
        part(name).places[name] = evidence.places.get(name, here)
    for key, summary in evidence.summaries.items():
        part(summary.engine).summaries[key] = summary
    for verdict in evidence.verdicts:
        part(verdict.engine).verdicts.append(verdict)
    return {name: found for name, found in parts.items() if found.engines or found.summaries or found.verdicts}


def told_places(engines: Iterable[EngineReport], evidence: Evidence, here: Environment) -> tuple[EngineReport, ...]:
    """The engines, those that ran on another machine than ``here`` with a warning that says where."""
    from dataclasses import replace

    told = []
    for engine in engines:
        place = evidence.places.get(engine.name, here)
        where = () if place.host == here.host else (f"ran on {place.host} ({place.hardware}), not on {here.host}",)
        told.append(replace(engine, warnings=(*engine.warnings, *where)))
    return tuple(told)


def unrecorded_limits(thresholds: Thresholds, parts: Mapping[str, Evidence]) -> tuple[str, ...]:
    """Limits that apply to something measured, and that no test of the whole suite looked at: one sentence each.

    ``parts`` is what was found on each kind of hardware. Engines that never ran have told why elsewhere.
    """
    from pytest_vllmperf.domain.thresholds import applicable, covers

    models = {
        hardware: {engine.name: engine.model for engine in part.engines.values() if engine.state == "measured"}
        for hardware, part in parts.items()
    }
    return tuple(
        dict.fromkeys(
            f"{limit.where}: {limit.metric} {limit.text} applies here, but {limit.metric} was never judged"
            for hardware in parts
            for table, limit in applicable(thresholds, hardware=hardware, models=models[hardware])
            if not any(
                covers(table, limit, verdict, hardware=other, models=models[other])
                for other, part in parts.items()
                for verdict in part.verdicts
                if verdict.against is None  # a comparison judges a change, no level
            )
        )
    )


def nothing_judged(outcome: RunOutcome, engines: Sequence[EngineReport]) -> tuple[str, ...]:
    """Why a run that judged nothing is not green; empty where something was judged, or nothing was meant to be."""
    if outcome.judged or outcome.record_only:
        return ()
    skipped = [f"{e.name}: {e.reason}" for e in engines if e.state == "skipped"]
    if engines and len(skipped) == len(engines):
        return ("nothing was judged: every engine was skipped (" + "; ".join(skipped) + ")",)
    return (
        (
            "nothing was judged: no limit in the thresholds file matches this hardware, model, engine and workload "
            "(--vllmperf-record-only if that is meant)"
        ),
    )


def other_failures(count: int) -> tuple[str, ...]:
    """What to say about tests that failed without a limit's doing."""
    if not count:
        return ()
    return (f"{count} test{'s' if count > 1 else ''} failed or errored for another reason than a limit",)


def history_extra(
    part: Evidence,
    here: Environment,
    *,
    started_at: str,
    exit_code: int,
    no_baseline: bool,
    fingerprints: Mapping[str, str],
    conditions: Mapping[str, Mapping[str, str]] | None = None,
    subjects: Mapping[str, Mapping[str, object]] | None = None,
    quick: bool = False,
) -> dict[str, object]:
    """What is stored beside each value of ``part``, all of which was measured on one kind of hardware.

    ``no_baseline`` keeps a sound run from ever being compared with: a quick one, or one with engines used before.
    """
    place = next(iter(part.places.values()), here)
    return {
        "hardware": place.hardware,
        "hosts": {engine: where.host for engine, where in part.places.items()},
        "vllm": place.packages.get("vllm"),
        "commit": here.commit,
        "started_at": started_at,
        "exit_code": exit_code,
        "quick": quick,
        "baseline": exit_code in SOUND and not no_baseline,
        "fingerprints": dict(fingerprints),
        "conditions": dict(conditions or {}),
        "subjects": dict(subjects or {}),
        "outcomes": {f"{v.engine}/{v.workload}::{v.metric}": str(v.outcome) for v in part.verdicts if not v.against},
    }


def conditions_of(run: Session, summary: Summary) -> dict[str, str]:
    """What must be equal for two values of this measurement to be comparable (see ``domain/series.py``)."""
    place = run.evidence.places.get(summary.engine, run.environment)
    config = run.engines.get(summary.engine)
    gpus = config.gpus if config is not None and place.device == "gpu" else len(place.gpus)
    return {
        "hardware": place.hardware,
        "GPUs": str(gpus),
        "driver": place.driver or "none",
        "host": f"{place.cpu}, {place.cores} cores",
        "model": summary.model,
        "workload": summary.description.partition("; ")[0],
        "workers": str(run.options.workers),
        "shared CPU": "yes" if run.options.share_cpu else "no",
    }


def subject_of(run: Session, summary: Summary) -> dict[str, object]:
    """What is compared: the version, flags and commit. Enough to launch it again, without secrets."""
    from pytest_vllmperf.domain.report import redacted

    place = run.evidence.places.get(summary.engine, run.environment)
    config, report = run.engines.get(summary.engine), run.evidence.engines.get(summary.engine)
    subject: dict[str, object] = {"vllm": report.version if report else None, "commit": run.environment.commit}
    if config is None:
        return subject
    engine = config.on(place.device)
    env = {name: redacted(value, env=engine.env, command=engine.command or ()) for name, value in engine.env.items()}
    return {
        **subject,
        "args": dict(engine.args),
        "env": env,
        "python": engine.python,
        "command": engine.command,
        "control": engine.control,
    }


def fingerprint(run: Session, summary: Summary) -> str:
    """Equal for measurements of one configuration and workload on one kind of hardware, whatever vLLM's version."""
    place = run.evidence.places.get(summary.engine, run.environment)
    config = run.engines.get(summary.engine)  # None for one that an experiment made up
    engine = config.on(place.device) if config else None
    what: dict[str, Any] = {
        "hardware": [place.hardware, place.cores if place.device == "cpu" or not engine else engine.gpus],
        "engine": [engine.model_name, dict(engine.args), dict(engine.env), engine.command]
        if engine
        else [summary.model, summary.engine],
        "workload": [summary.workload, summary.description],
        "shares_cpu": run.options.share_cpu,
    }
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
