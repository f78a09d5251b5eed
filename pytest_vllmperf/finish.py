"""The end of a run: the report, the history entry, the exit code, the table on the terminal."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import EngineReport, Report
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Verdict
    from pytest_vllmperf.session import Session

__all__ = ["RunFacts", "conclude", "print_report"]

_RUNS_SHOWN = 20
"""Earlier runs in the sparklines of the page; a stored run holds every raw sample, so reading all would take long."""


class RunFacts(Protocol):
    """What the plugin's hooks noted about a run."""

    partial: str | None
    ordinary_failures: int
    internal_error: bool


def conclude(config: pytest.Config, session: pytest.Session, run: Session, facts: RunFacts) -> Report:
    """Write report and history, set the session's exit status, and return the report."""
    from pytest_vllmperf.adapters import history, html_report, writers
    from pytest_vllmperf.domain.gate import ExitCode, RunOutcome, exit_code

    evidence = run.evidence
    verdicts = tuple(evidence.verdicts)
    unrecorded = () if _interrupted(session, facts) else _unrecorded_limits(run)
    outcome = RunOutcome(
        verdicts=verdicts,
        ordinary_failures=facts.ordinary_failures,
        unrecorded_limits=unrecorded,
        inconclusive_fails=run.thresholds.inconclusive == "fail",
        record_only=run.options.record_only,
    )
    status = _status(int(session.exitstatus), facts, int(exit_code(outcome)))
    session.exitstatus = status
    engines = run.engine_reports()
    problems = [*unrecorded, *_other_failures(facts.ordinary_failures)]
    if status in {int(code) for code in ExitCode}:  # a run that was interrupted, or broke, has told why
        problems += _nothing_judged(outcome, engines)
    report = _with_sections(config, _report(run, engines, verdicts, tuple(problems), status))
    directory = run.options.report_directory
    writers.write_json(report, directory / "report.json")
    writers.write_markdown(report, directory / "report.md")
    history.record(config, report.summaries, extra=_history_extra(report, run))
    earlier = history.earlier_runs(config, at_most=_RUNS_SHOWN)
    html_report.write_html(report, directory / "index.html", history=earlier.runs, notes=earlier.warnings)
    config.hook.pytest_vllmperf_report(config=config, report=report)
    return report


def _status(ended: int, facts: RunFacts, judged: int) -> int:
    """The exit status: pytest's own where the run broke off, else the judgement's; never 0 after a failure."""
    finished = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if facts.internal_error and ended in (*finished, pytest.ExitCode.NO_TESTS_COLLECTED):
        return int(pytest.ExitCode.INTERNAL_ERROR)
    return (judged or ended) if ended in finished else ended


def print_report(terminal: Any, report: Report, directory: Path, root: Path) -> None:
    """The final table, problems and the verdict sentence."""
    from pytest_vllmperf.adapters import writers
    from pytest_vllmperf.domain.report import headline

    terminal.section("vllmperf")
    for line in writers.terminal_table(report, width=min(100, terminal._tw.fullwidth)):
        terminal.write_line(line, **_markup(line))
    for problem in report.problems:
        terminal.write_line(f"! {problem}", yellow=True)
    shown = directory.relative_to(root) if directory.is_relative_to(root) else directory
    good = report.exit_code == 0
    sentence = headline(report.verdicts, report.engines, report.problems)
    terminal.write_line(f"{sentence}. Exit code {report.exit_code}.", bold=True, green=good, red=not good)
    terminal.write_line(f"Report: {shown / 'index.html'}, {shown / 'report.md'}, {shown / 'report.json'}")


def _markup(line: str) -> dict[str, bool]:
    """Colour with meaning only: the verdict at the end of a line decides."""
    last = line.rstrip()
    if last.endswith((" FAIL", " INVALID")):
        return {"red": True}
    if last.endswith(" INCONCLUSIVE"):
        return {"yellow": True}
    return {"green": True} if last.endswith(" PASS") else {}


def _interrupted(session: pytest.Session, facts: RunFacts) -> bool:
    """True when part of the suite was not meant to run, or could not finish: then no limit is missed."""
    return bool(facts.partial or session.shouldstop or session.shouldfail or session.exitstatus not in (0, 1))


def _unrecorded_limits(run: Session) -> tuple[str, ...]:
    """Limits that apply to something here and that no test of the whole suite looked at."""
    from pytest_vllmperf.domain.thresholds import applicable, covers

    judged = run.evidence.verdicts
    here = run.environment.hardware
    engines = run.evidence.engines
    models = {  # what never ran, and why, is told elsewhere
        e.name: e.model_name
        for e in run.selected_engines.values()
        if e.name in engines and engines[e.name].state == "measured"
    }
    return tuple(
        f"{limit.where}: {limit.metric} {limit.text} applies here, but {limit.metric} was never judged"
        for table, limit in applicable(run.thresholds, hardware=here, models=models)
        if not any(covers(table, limit, v, hardware=here, models=models) for v in judged)
    )


def _nothing_judged(outcome: Any, engines: tuple[EngineReport, ...]) -> tuple[str, ...]:
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


def _other_failures(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count} test{'s' if count > 1 else ''} failed or errored for another reason than a limit",)


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
        summaries=tuple(run.evidence.summaries.values()),
        verdicts=verdicts,
        problems=problems,
        exit_code=status,
        sections=tuple(run.evidence.sections.values()),
    )


def _with_sections(config: pytest.Config, report: Report) -> Report:
    """The report with what hooks add to it. One that fails is told of, and takes nothing else with it."""
    from dataclasses import replace

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


_SOUND = (0, 11, 12)
"""Exit codes of runs that measured to the end and missed nothing: fine, inconclusive, nothing judged."""


def _history_extra(report: Report, run: Session) -> dict[str, object]:
    here = report.environment
    return {
        "hardware": here.hardware,
        "vllm": here.packages.get("vllm"),
        "commit": here.commit,
        "started_at": report.started_at,
        "exit_code": report.exit_code,
        "quick": run.options.quick,
        "baseline": report.exit_code in _SOUND and not run.options.quick,
        "fingerprints": {f"{s.engine}/{s.workload}": _fingerprint(run, s) for s in report.summaries},
        "outcomes": {f"{v.engine}/{v.workload}::{v.metric}": str(v.outcome) for v in report.verdicts},
    }


def _fingerprint(run: Session, summary: Summary) -> str:
    """Equal for measurements of one configuration and workload on one kind of hardware, whatever vLLM's version."""
    import hashlib
    import json

    here = run.environment
    engine = run.engines[summary.engine].on(here.device)
    what = {
        "hardware": [here.hardware, here.cores if here.device == "cpu" else engine.gpus],
        "engine": [engine.model_name, dict(engine.args), dict(engine.env), engine.command],
        "workload": [summary.workload, summary.description],
        "shares_cpu": run.options.share_cpu,
    }
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
