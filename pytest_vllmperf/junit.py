"""What JUnit files say of a judged test: failure, skipped with the reason, error, and every judgement as a property."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_vllmperf.domain.thresholds import Verdict

__all__ = ["judgements", "show_as_skipped", "turn_into_error"]


def judgements(verdicts: Sequence[Verdict]) -> list[tuple[str, object]]:
    """One property for each judgement: ``vllmperf.<engine>/<workload>/<metric>`` and ``PASS: <reason>``."""
    return [(f"vllmperf.{v.subject}/{v.workload}/{v.metric}", f"{v.word}: {v.reason}") for v in verdicts]


def show_as_skipped(report: pytest.TestReport, verdicts: Sequence[Verdict]) -> None:
    """Neither passed nor failed: JUnit knows only one word for that, and carries the reason."""
    from pytest_vllmperf.domain.thresholds import Outcome

    reasons = "; ".join(v.reason for v in verdicts if v.outcome is Outcome.INCONCLUSIVE)
    path, line, _ = report.location
    report.outcome = "skipped"
    report.longrepr = (path, line or 0, f"INCONCLUSIVE: {reasons}")


def turn_into_error(config: pytest.Config, report: pytest.TestReport) -> None:
    """Make the failure that JUnit was just told of an error: the measurement is broken, no limit was missed.

    There is no public way to: pytest writes whatever fails in a test's own phase as a failure. Where its insides are
    not as known, it stays one.
    """
    try:
        from _pytest.junitxml import xml_key

        xml = config.stash.get(xml_key, None)
        if xml is None:
            return
        for element in xml.node_reporter(report).nodes:
            if element.tag == "failure":
                element.tag = "error"
                xml.stats["failure"] -= 1
                xml.stats["error"] += 1
    except (AttributeError, ImportError, KeyError):
        return
