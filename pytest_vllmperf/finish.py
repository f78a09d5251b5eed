"""The end of a run: the report, the history entry, the exit code, the table on the terminal."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.run_journal import JournalWriter
    from pytest_vllmperf.domain.report import EngineReport, Report
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Verdict
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session

__all__ = ["RunFacts", "conclude", "print_report"]

_BROKEN_OFF = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR)
_RUNS_SHOWN = 40
"""Earlier runs in sparklines and trends of the page; a stored run holds every raw sample: reading all takes long."""


class RunFacts(Protocol):
    """What the plugin's hooks noted about a run."""

    partial: str | None
    ordinary_failures: int
    internal_error: bool
    journal: JournalWriter | None
    written: tuple[Path, ...]
    push_failure: str | None
    limits_diff: str


def conclude(config: pytest.Config, session: pytest.Session, run: Session, facts: RunFacts) -> Report:
    """Write report and history, set the session's exit status, and return the report."""
    from pytest_vllmperf import conclusion
    from pytest_vllmperf.adapters import history
    from pytest_vllmperf.domain.gate import ExitCode, RunOutcome, exit_code
    from pytest_vllmperf.reporting import write_reports
    from pytest_vllmperf.suspicion import look_back

    evidence = run.evidence
    earlier = history.earlier_runs(config, at_most=_RUNS_SHOWN)
    past = look_back(run, earlier, confirm=not _interrupted(session, facts))
    parts = conclusion.by_hardware(evidence, run.environment)
    unrecorded = () if _interrupted(session, facts) else conclusion.unrecorded_limits(run.judged_by, parts)
    outcome = RunOutcome(
        verdicts=tuple(evidence.verdicts),
        ordinary_failures=facts.ordinary_failures,
        unrecorded_limits=unrecorded,
        inconclusive_fails=run.thresholds.inconclusive == "fail",
        record_only=run.options.record_only,
    )
    status = _status(int(session.exitstatus), facts, int(exit_code(outcome)))
    session.exitstatus = status
    engines = conclusion.told_places(run.engine_reports(), evidence, run.environment)
    problems = [*unrecorded, *conclusion.other_failures(facts.ordinary_failures)]
    if status in {int(code) for code in ExitCode}:  # a run that was interrupted, or broke, has told why
        problems += conclusion.nothing_judged(outcome, engines)
    report = _with_sections(config, _report(run, engines, tuple(evidence.verdicts), tuple(problems), status))
    if run.options.judging.calibrate:
        report = _calibrated(session, report, run, parts, facts)
    if past is not None:
        report = replace(report, sections=(*report.sections, past))
    for part in parts.values():
        history.record(config, tuple(part.summaries.values()), extra=_history_extra(part, report, run))
    facts.written = write_reports(
        report,
        run.options.report_directory,
        formats=run.options.report_formats,
        history=earlier.runs,
        notes=earlier.warnings,
    )
    facts.push_failure = _pushed(report, run.options.push_url)
    config.hook.pytest_vllmperf_report(config=config, report=report)
    if facts.journal is not None:
        facts.journal.end({"exit_code": status, "interrupted": _interrupted(session, facts), "problems": problems})
    return report


def _calibrated(
    session: pytest.Session, report: Report, run: Session, parts: Mapping[str, Evidence], facts: RunFacts
) -> Report:
    """The report with the proposed limits, which are in the file by then. Limits that could not be written fail."""
    from pytest_vllmperf.calibrating import calibrate

    broken_off = bool(session.shouldstop or session.shouldfail or int(session.exitstatus) in _BROKEN_OFF)
    found = calibrate(run, parts, broken_off=broken_off)
    facts.limits_diff = found.difference
    if found.failure is None:
        return replace(report, sections=(*report.sections, found.section))
    session.exitstatus = int(session.exitstatus) or int(pytest.ExitCode.TESTS_FAILED)
    return replace(
        report,
        sections=(*report.sections, found.section),
        problems=(*report.problems, found.failure),
        exit_code=int(session.exitstatus),
    )


def _status(ended: int, facts: RunFacts, judged: int) -> int:
    """The exit status: pytest's own where the run broke off, else the judgement's; never 0 after a failure."""
    finished = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if facts.internal_error and ended in (*finished, pytest.ExitCode.NO_TESTS_COLLECTED):
        return int(pytest.ExitCode.INTERNAL_ERROR)
    return (judged or ended) if ended in finished else ended


def _pushed(report: Report, url: str | None) -> str | None:
    if url is None:
        return None
    from pytest_vllmperf.adapters.prometheus_text import push_metrics

    return push_metrics(report, url)


def print_report(terminal: Any, report: Report, facts: RunFacts, *, root: Path, thresholds: Path) -> None:
    """The final table, what others found, problems, the verdict sentence; and annotations in GitHub Actions."""
    import os

    from pytest_vllmperf.adapters import writers
    from pytest_vllmperf.adapters.github_actions import annotation_commands
    from pytest_vllmperf.domain.report import headline

    terminal.section("vllmperf")
    for line in writers.terminal_table(report, width=min(100, terminal._tw.fullwidth)):
        terminal.write_line(line, **_markup(line))
    for section in report.sections:
        for sentence in section.sentences:
            terminal.write_line(f"{section.title}: {sentence}", **_KIND_MARKUP.get(section.kind, {}))
    for line in facts.limits_diff.splitlines():
        terminal.write_line(line, green=line.startswith("+"), red=line.startswith("-"))
    for problem in (*report.problems, *([facts.push_failure] if facts.push_failure else [])):
        terminal.write_line(f"! {problem}", yellow=True)
    good = report.exit_code == 0
    sentence = headline(report.verdicts, report.engines, report.problems)
    terminal.write_line(f"{sentence}. Exit code {report.exit_code}.", bold=True, green=good, red=not good)
    if facts.written:
        shown = (path.relative_to(root) if path.is_relative_to(root) else path for path in facts.written)
        terminal.write_line(f"Report: {', '.join(map(str, shown))}")
    for command in annotation_commands(report, os.environ, thresholds=thresholds):
        terminal.write_line(command)


_KIND_MARKUP = {
    "pass": {"green": True},
    "fail": {"red": True},
    "invalid": {"red": True},
    "inconclusive": {"yellow": True},
}


def _markup(line: str) -> dict[str, bool]:
    """Colour with meaning only: the verdict at the end of a line decides."""
    last = line.rstrip()
    if last.endswith((" FAIL", " INVALID")):
        return {"red": True}
    if last.endswith(" INCONCLUSIVE"):
        return {"yellow": True}
    return {"green": True} if last.endswith((" PASS", " PASS (1 launch)")) else {}


def _interrupted(session: pytest.Session, facts: RunFacts) -> bool:
    """True when part of the suite was not meant to run, or could not finish: then no limit is missed."""
    return bool(facts.partial or session.shouldstop or session.shouldfail or session.exitstatus not in (0, 1))


def _report(
    run: Session,
    engines: tuple[EngineReport, ...],
    verdicts: tuple[Verdict, ...],
    problems: tuple[str, ...],
    status: int,
) -> Report:
    from pytest_vllmperf.domain.report import Report

    now = dt.datetime.now(dt.timezone.utc)
    return Report(
        started_at=run.started_at.isoformat(timespec="seconds"),
        duration_s=(now - run.started_at).total_seconds(),
        environment=run.environment,
        engines=engines,
        summaries=_shown(run.evidence.summaries.values()),
        verdicts=verdicts,
        problems=problems,
        exit_code=status,
        sections=tuple(run.evidence.sections.values()),
    )


def _shown(summaries: Iterable[Summary]) -> tuple[Summary, ...]:
    """One measurement for each engine and workload: an experiment's only where there is no ordinary one."""
    found: dict[tuple[str, str], Summary] = {}
    for summary in sorted(summaries, key=lambda s: bool(s.experiment)):
        found.setdefault((summary.engine, summary.workload), summary)
    return tuple(found.values())


def _with_sections(config: pytest.Config, report: Report) -> Report:
    """The report with what hooks add to it. One that fails is told of, and takes nothing else with it."""
    from pytest_vllmperf.domain.section import Section

    found = {section.id: section for section in report.sections}
    try:
        for batch in config.hook.pytest_vllmperf_sections(config=config, report=report):
            for section in batch:
                if not isinstance(section, Section):
                    raise TypeError(f"pytest_vllmperf_sections must return Section objects, got {section!r}")  # noqa: TRY301
                found[section.id] = section
    except Exception as error:  # noqa: BLE001 - somebody else's code must not lose what was measured
        told = f"a section of the report could not be made: {type(error).__name__}: {error}"
        return replace(report, problems=(*report.problems, told), sections=tuple(found.values()))
    return replace(report, sections=tuple(found.values()))


def _history_extra(part: Evidence, report: Report, run: Session) -> dict[str, object]:
    from pytest_vllmperf import conclusion

    return conclusion.history_extra(
        part,
        report.environment,
        started_at=report.started_at,
        exit_code=report.exit_code,
        quick=run.options.quick,
        no_baseline=run.options.quick or any(engine.reused for engine in part.engines.values()),
        fingerprints={f"{s.engine}/{s.workload}": conclusion.fingerprint(run, s) for s in part.summaries.values()},
        conditions={f"{s.engine}/{s.workload}": conclusion.conditions_of(run, s) for s in part.summaries.values()},
        subjects={f"{s.engine}/{s.workload}": conclusion.subject_of(run, s) for s in part.summaries.values()},
    )
