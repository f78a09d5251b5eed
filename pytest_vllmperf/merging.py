"""Joining what several runs measured: hosts of one test bed, shards of a CI job, or a run that was killed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.conclusion import (
    history_extra,
    nothing_judged,
    other_failures,
    unrecorded_limits,
)
from pytest_vllmperf.domain.metrics import Better
from pytest_vllmperf.errors import HistoryError
from pytest_vllmperf.sending import Evidence

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.run_journal import Journal
    from pytest_vllmperf.domain.environment import Environment
    from pytest_vllmperf.domain.report import EngineReport, Report
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Thresholds, Verdict

__all__ = ["Merged", "StoredPart", "merge"]

_INTERRUPTED = 2
_BROKE_OFF = (2, 3, 4)
"""pytest's own exit codes of runs that did not finish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """What one history entry is made of: everything measured on one kind of hardware, under its own names."""

    environment: Environment
    summaries: tuple[Summary, ...]
    extra: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """One report of all runs, and one history entry for each kind of hardware."""

    report: Report
    parts: tuple[StoredPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One run, read from its journal."""

    journal: Journal
    environment: Environment
    limits: Thresholds
    evidence: Evidence
    launches: dict[tuple[str, str], int]
    fingerprints: dict[str, str]
    conditions: dict[str, dict[str, str]]
    subjects: dict[str, dict[str, object]]
    failures: int
    started_at: dt.datetime

    def problems(self) -> tuple[str, ...]:
        """What keeps its results from being a whole run's."""
        path, end = self.journal.path, self.journal.end
        if end is None:
            return (f"{path}: this run was killed, or is still going on: the test in flight is missing", *self.broken)
        if end["exit_code"] in _BROKE_OFF:
            return (f"{path}: this run broke off with exit code {end['exit_code']}", *self.broken)
        return self.broken

    @property
    def broken(self) -> tuple[str, ...]:
        return self.journal.warnings

    @property
    def status(self) -> int:
        """0 for a run that went to its end, else why it did not."""
        code = _INTERRUPTED if self.journal.end is None else int(self.journal.end["exit_code"])
        return code if code in _BROKE_OFF else 0


def merge(journals: Sequence[Journal], *, partial: bool) -> Merged:
    """Join runs that were judged by the same limits.

    Args:
        journals: The runs, in any order; they are taken by the time they began.
        partial: Whether limits that none of them looked at are no problem.

    Raises:
        HistoryError: One cannot be read, or they were judged by different limits.
    """
    sources = sorted((_source(journal) for journal in journals), key=lambda source: source.started_at)
    first = sources[0]
    for other in sources[1:]:
        if replace(other.limits, path=None) != replace(first.limits, path=None):
            raise HistoryError(
                f"{other.journal.path} was judged by other limits than {first.journal.path}: runs that are joined need "
                "one and the same thresholds.toml"
            )
    parts = _parts(sources)
    status, problems = _verdict(sources, parts, partial=partial)
    joined = _Joined.of(sources)
    engines = tuple(joined.engines.values())
    report = _report(sources, engines, joined, problems, status)
    return Merged(report=report, parts=tuple(_stored(sources, part, report) for part in parts.values()))


def _source(journal: Journal) -> _Source:
    import msgspec

    from pytest_vllmperf.domain.custom_metrics import CustomMetric, register
    from pytest_vllmperf.domain.environment import Environment
    from pytest_vllmperf.domain.thresholds import Thresholds

    evidence, launches = Evidence(), {}
    told: dict[str, dict[str, Any]] = {"fingerprints": {}, "conditions": {}, "subjects": {}}
    try:
        register([CustomMetric(**{**own, "better": Better(own["better"])}) for own in journal.start["metrics"]])
        for line in journal.tests:
            if "found" in line:
                found = Evidence.from_builtins(line["found"])
                launches.update({(line["worker"], e.name): e.launches for e in found.engines.values()})
                evidence.add(found)
                for what, by_measurement in told.items():
                    by_measurement.update(line.get(what, {}))  # journals of 2026-11 began without some
        return _Source(
            journal=journal,
            environment=msgspec.convert(journal.start["environment"], Environment),
            limits=msgspec.convert(journal.start["limits"], Thresholds),
            evidence=evidence,
            launches=launches,
            fingerprints=told["fingerprints"],
            conditions=told["conditions"],
            subjects=told["subjects"],
            failures=sum(bool(line.get("other_failure")) for line in journal.tests),
            started_at=dt.datetime.fromisoformat(journal.start["started_at"]),
        )
    except (KeyError, TypeError, ValueError) as error:  # msgspec's own errors are ValueErrors
        raise HistoryError(f"{journal.path} was written by another version of pytest-vllmperf: {error}") from error


def _parts(sources: Iterable[_Source]) -> dict[str, list[tuple[_Source, Evidence]]]:
    """By hardware, what each source found on it."""
    from pytest_vllmperf.conclusion import by_hardware

    parts: dict[str, list[tuple[_Source, Evidence]]] = {}
    for source in sources:
        for hardware, evidence in by_hardware(source.evidence, source.environment).items():
            parts.setdefault(hardware, []).append((source, evidence))
    return parts


def _verdict(
    sources: Sequence[_Source], parts: dict[str, list[tuple[_Source, Evidence]]], *, partial: bool
) -> tuple[int, tuple[str, ...]]:
    """Exit code and problems of all together: judged as one run would have been."""
    from pytest_vllmperf.domain.gate import RunOutcome, exit_code

    judged = {hardware: _all_verdicts(found for _, found in part) for hardware, part in parts.items()}
    limits = sources[0].limits
    unrecorded = () if partial else unrecorded_limits(limits, judged)
    outcome = RunOutcome(
        verdicts=tuple(verdict for part in judged.values() for verdict in part.verdicts),
        ordinary_failures=sum(source.failures for source in sources),
        unrecorded_limits=unrecorded,
        inconclusive_fails=limits.inconclusive == "fail",
        record_only=all(source.journal.start["record_only"] for source in sources),
    )
    broke_off = max(source.status for source in sources)
    engines = tuple(engine for source in sources for engine in source.evidence.engines.values())
    problems = [problem for source in sources for problem in source.problems()]
    problems += [*unrecorded, *other_failures(outcome.ordinary_failures)]
    if not broke_off:
        problems += nothing_judged(outcome, engines)
    code = int(exit_code(outcome))
    return (code if code in (1, 10) else broke_off or code), tuple(problems)


def _all_verdicts(found: Iterable[Evidence]) -> Evidence:
    """Everything judged; unlike :meth:`Evidence.add`, two judgements of one value by two runs both count."""
    both = Evidence()
    for evidence in found:
        both.engines.update(evidence.engines)
        both.verdicts.extend(evidence.verdicts)
    return both


@dataclass(slots=True, kw_only=True)
class _Joined:
    """What the report shows: an engine that two runs measured differently appears as ``NAME@HOST``."""

    engines: dict[str, EngineReport] = field(default_factory=dict)
    summaries: list[Summary] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)
    hardware: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Iterable[_Source]) -> _Joined:
        joined = cls()
        for source in sources:
            for name, engine in source.evidence.engines.items():
                joined._take(source, name, engine)
        return joined

    def _take(self, source: _Source, name: str, engine: EngineReport) -> None:
        found, place = source.evidence, source.evidence.places.get(name, source.environment)
        mine = {key[:2] for key in found.summaries if key[0] == name}
        mine |= {(name, v.workload) for v in found.verdicts if v.engine == name}
        shown = name
        if self.hardware.get(name, place.hardware) != place.hardware or mine & self.taken:
            shown = self._own_name(f"{name}@{place.host or place.hardware}")
        self.taken |= {(shown, workload) for _, workload in mine}
        self.hardware[shown] = place.hardware
        launches = sum(number for (_, which), number in source.launches.items() if which == name)
        before = self.engines.get(shown)
        self.engines[shown] = replace(
            engine, name=shown, launches=launches + (before.launches if before else 0), warnings=_once(before, engine)
        )
        self.summaries += [replace(s, engine=shown) for key, s in found.summaries.items() if key[0] == name]
        self.verdicts += [replace(v, engine=shown) for v in found.verdicts if v.engine == name]

    def _own_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self.engines:
            name, number = f"{wanted}#{number}", number + 1
        return name


def _once(before: EngineReport | None, engine: EngineReport) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*(before.warnings if before else ()), *engine.warnings)))


def _report(
    sources: Sequence[_Source],
    engines: tuple[EngineReport, ...],
    joined: _Joined,
    problems: tuple[str, ...],
    status: int,
) -> Report:
    from pytest_vllmperf.domain.report import Report

    places = [p for s in sources for p in (*s.evidence.places.values(), s.environment)]
    environment = places[0]
    others = dict.fromkeys(
        f"also ran on {p.host} ({p.hardware}, {p.cores} cores, vLLM {p.packages.get('vllm', 'unknown')})"
        for p in places
        if (p.host, p.hardware) != (environment.host, environment.hardware)
    )
    return Report(
        started_at=sources[0].started_at.isoformat(timespec="seconds"),
        duration_s=max(_ended(source) for source in sources) - sources[0].started_at.timestamp(),
        environment=replace(environment, warnings=(*environment.warnings, *others)),
        engines=engines,
        summaries=tuple(joined.summaries),
        verdicts=tuple(joined.verdicts),
        problems=problems,
        exit_code=status,
        sections=tuple({key: s for source in sources for key, s in source.evidence.sections.items()}.values()),
    )


def _ended(source: _Source) -> float:
    """When a source was last written: seconds since the epoch."""
    stamps: list[Any] = [line.get("at") for line in (*source.journal.tests, source.journal.end or {})]
    return max((float(at) for at in stamps if at is not None), default=source.started_at.timestamp())


def _stored(sources: Sequence[_Source], part: Sequence[tuple[_Source, Evidence]], report: Report) -> StoredPart:
    everything = _all_verdicts(found for _, found in part)
    for _, found in part:
        everything.places.update(found.places)
    here = part[0][0].environment
    quick = any(source.journal.start["quick"] for source in sources)
    return StoredPart(
        environment=next(iter(everything.places.values()), here),
        summaries=tuple(summary for _, found in part for summary in found.summaries.values()),
        extra=history_extra(
            everything,
            here,
            started_at=report.started_at,
            exit_code=report.exit_code,
            quick=quick,
            no_baseline=quick or any(engine.reused for engine in everything.engines.values()),
            fingerprints={key: value for source, _ in part for key, value in source.fingerprints.items()},
            conditions={key: value for source, _ in part for key, value in source.conditions.items()},
            subjects={key: value for source, _ in part for key, value in source.subjects.items()},
        ),
    )
