"""Going on with a run that was killed or interrupted: what its tests found is taken over, the others run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_vllmperf.errors import ConfigError, HistoryError

if TYPE_CHECKING:
    from typing import Protocol

    from pytest_vllmperf.adapters.run_journal import Journal
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session

    class Named(Protocol):
        """What of a test is looked at."""

        @property
        def nodeid(self) -> str:
            """Names it, from run to run."""


__all__ = ["take_over"]

Item = TypeVar("Item", bound="Named")


def take_over(session: Session, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Tests that are left to run, and those whose findings the unfinished run in the report directory already has.

    What those found becomes this run's: measurements, verdicts, sections. An engine is believed as a whole or not at
    all: where one of its measurements was made in another configuration, all its tests run again.

    Raises:
        ConfigError: There is no unfinished run, or it was judged by other limits.
    """
    journal = _unfinished(session)
    found = _found(journal)
    lines = _believable(session, journal, found)
    when = str(journal.start["started_at"])
    done = [item for item in items if item.nodeid in lines]
    for item in done:
        for line in lines[item.nodeid]:
            _add(session, line, found[id(line)], when)
    session.resumed += [line for item in done for line in lines[item.nodeid]]
    session.progress(f"resuming the run of {when}: {len(done)} of {len(items)} tests are done")
    return [item for item in items if item.nodeid not in lines], done


def _unfinished(session: Session) -> Journal:
    from pytest_vllmperf.adapters.run_journal import JOURNAL, read_journal
    from pytest_vllmperf.sending import builtins_only

    path = session.options.report_directory / JOURNAL
    try:
        journal = read_journal(path)
    except (HistoryError, OSError) as error:
        raise ConfigError(f"--vllmperf-resume: nothing to go on with: {error}") from error
    if journal.end is not None and not journal.end.get("interrupted"):
        raise ConfigError(
            f"--vllmperf-resume: the run in {path} went to its end; run without --vllmperf-resume to measure anew"
        )
    for name, now in (("limits", builtins_only(session.thresholds)), ("quick", session.options.quick)):
        if journal.start.get(name) != now:
            raise ConfigError(
                f"--vllmperf-resume: the run in {path} had other {name}: what it judged does not fit this run; restore "
                "them, or run without --vllmperf-resume"
            )
    return journal


def _found(journal: Journal) -> dict[int, Evidence]:
    """What each line that has findings tells, by the line's identity."""
    from pytest_vllmperf.sending import Evidence

    return {id(line): Evidence.from_builtins(line["found"]) for line in journal.tests if "found" in line}


def _believable(
    session: Session, journal: Journal, found: Mapping[int, Evidence]
) -> dict[str, list[Mapping[str, Any]]]:
    """The lines of each test that ended, by node id, without engines that are configured otherwise by now."""
    from pytest_vllmperf.conclusion import fingerprint

    stale: set[str] = set()
    for line in journal.tests:
        if id(line) not in found:
            continue
        told = line["fingerprints"]
        for summary in found[id(line)].summaries.values():
            if told.get(f"{summary.engine}/{summary.workload}") != fingerprint(session, summary):
                stale.add(summary.engine)
    by_test: dict[str, list[Mapping[str, Any]]] = {}
    for line in journal.tests:
        by_test.setdefault(line["test"], []).append(line)
    return {
        test: [line for line in lines if id(line) in found]
        for test, lines in by_test.items()
        if any(line["when"] == "call" for line in lines)
        and not any(line["other_failure"] for line in lines)
        and not any(stale & _about(found[id(line)]) for line in lines if id(line) in found)
    }


def _about(found: Evidence) -> set[str]:
    """Every engine a test told of; what went before is not sent again, so each kind of finding counts."""
    judged = {name for v in found.verdicts for name in (v.engine, v.against) if name is not None}
    return {*found.engines, *judged, *(summary.engine for summary in found.summaries.values())}


def _add(session: Session, line: Mapping[str, Any], evidence: Evidence, when: str) -> None:
    note = f"measured by the run of {when}, which this one goes on with"

    def noted(summary: Summary) -> Summary:
        return summary if note in summary.warnings else replace(summary, warnings=(*summary.warnings, note))

    evidence.summaries = {key: noted(summary) for key, summary in evidence.summaries.items()}
    session.add_evidence(evidence, worker=f"{line['worker']} of {when}")
    for (engine, workload, experiment), summary in evidence.summaries.items():
        if not experiment:
            session.measured[engine, workload] = summary
