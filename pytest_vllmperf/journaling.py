"""Between the hooks and the journal: what each test sent is taken over by the run, and is on disk at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.run_journal import JournalWriter
    from pytest_vllmperf.session import Session

__all__ = ["open_journal", "take"]


class RunState(Protocol):
    """What of ``stash.RunState`` is touched here."""

    uses_engines: bool
    ordinary_failures: int
    checked: bool
    journal: JournalWriter | None


def open_journal(run: Session) -> JournalWriter:
    """Begin the journal of ``run`` in its report directory.

    Raises:
        OSError: It cannot be written there.
    """
    from pytest_vllmperf.adapters.run_journal import JOURNAL, JournalWriter
    from pytest_vllmperf.sending import builtins_only

    journal = JournalWriter(run.options.report_directory / JOURNAL)
    journal.start(
        {
            "started_at": run.started_at.isoformat(timespec="seconds"),
            "environment": builtins_only(run.environment),
            "limits": builtins_only(run.thresholds),
            "metrics": builtins_only([replace(own, compute=None) for own in run.metrics]),
            "quick": run.options.quick,
            "record_only": run.options.record_only,
        }
    )
    for line in run.resumed:
        journal.test(line)
    return journal


def take(run: Session, state: RunState, report: Any, *, other_failure: bool) -> None:
    """Take over what a test's ``report`` carries, and write it down."""
    from pytest_vllmperf.conclusion import conditions_of, fingerprint, subject_of
    from pytest_vllmperf.sending import Evidence, builtins_only

    state.ordinary_failures += other_failure
    worker = getattr(report, "worker_id", "main")
    sent = getattr(report, "vllmperf", None)
    line = {"test": report.nodeid, "when": report.when, "worker": worker, "other_failure": other_failure}
    if sent is not None:
        evidence = Evidence.from_builtins(sent)
        state.uses_engines = True
        run.add_evidence(evidence, worker=worker)
        measured = {f"{s.engine}/{s.workload}": s for s in evidence.summaries.values()}
        line |= {
            "found": sent,
            "fingerprints": {name: fingerprint(run, s) for name, s in measured.items()},
            "conditions": {name: conditions_of(run, s) for name, s in measured.items()},
            "subjects": run.redactor.clean_all(builtins_only({n: subject_of(run, s) for n, s in measured.items()})),
        }
    if state.journal is None and state.checked:
        state.journal = open_journal(run)
    if state.journal is not None:
        state.journal.test(line)
