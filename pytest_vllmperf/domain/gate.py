"""From measurements to the fate of a test, and from tests to the fate of the run.

A run is green only when something was judged and nothing failed; nothing measured is never green.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_vllmperf.domain.levels import judge_level
from pytest_vllmperf.domain.metrics import judgeable_metric
from pytest_vllmperf.domain.quality_verdicts import judge_quality
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Subject, Thresholds, Verdict, judge, resolve

__all__ = ["ExitCode", "RunOutcome", "comparison_message", "exit_code", "failure_message", "judge_all"]


class ExitCode(enum.IntEnum):
    """Exit codes of ``pytest suites/`` beside pytest's own 2 to 5."""

    OK = 0
    FAILED = 1
    INVALID = 10
    INCONCLUSIVE = 11
    NOTHING_JUDGED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What the exit code depends on.

    Args:
        verdicts: Every judgement of the run.
        ordinary_failures: Tests that failed or errored for any other reason than a verdict
            (an engine that did not start, an assertion of the user's own).
        unrecorded_limits: Limits that apply here and whose metric was never recorded, although the
            whole suite was selected; one sentence each.
        inconclusive_fails: True when every INCONCLUSIVE counts as a failure.
        record_only: True when the run is meant to judge nothing.
    """

    verdicts: Sequence[Verdict]
    ordinary_failures: int
    unrecorded_limits: Sequence[str]
    inconclusive_fails: bool
    record_only: bool

    @property
    def judged(self) -> int:
        """Judgements against limits of the user's own."""
        return sum(v.outcome is not Outcome.NOT_JUDGED and not v.built_in for v in self.verdicts)


def exit_code(run: RunOutcome) -> ExitCode:
    """The exit code, by the order of design: failed, invalid, inconclusive, nothing judged, fine."""
    outcomes = Counter(v.outcome for v in run.verdicts)
    if run.ordinary_failures or outcomes[Outcome.FAIL]:
        return ExitCode.FAILED
    if outcomes[Outcome.INVALID]:
        return ExitCode.INVALID
    if any(v.counts_as_failure(inconclusive_fails=run.inconclusive_fails) for v in run.verdicts):
        return ExitCode.INCONCLUSIVE
    if run.record_only:
        return ExitCode.OK
    if not run.judged or run.unrecorded_limits:
        return ExitCode.NOTHING_JUDGED
    return ExitCode.OK


_MESSAGE_LINES = 12


def judge_all(
    thresholds: Thresholds, subject: Subject, summary: Summary, metrics: Sequence[str], *, launches: int = 1
) -> list[Verdict]:
    """Judge ``metrics`` of ``summary``: of load always its ``error_rate``, answers as quality is judged.

    ``launches`` is how many there may be at most, fixed before the first.

    Raises:
        UnknownMetric: A name is not in the catalogue, or is a bare distribution.
        LimitTie: Two limits claim one value equally.
    """
    if summary.kind == "quality":
        return judge_quality(thresholds, subject, summary, metrics)
    verdicts = []
    for name in metrics:
        judgeable_metric(name)
        verdicts.append(judge_level(summary, name, resolve(thresholds, subject, name), launches=launches))
    if summary.kind == "load" and "error_rate" not in metrics:
        limit = resolve(thresholds, subject, "error_rate")
        verdicts.append(replace(judge(summary, "error_rate", limit or _NO_FAILURES), built_in=limit is None))
    return verdicts


_NO_FAILURES = Limit(
    metric="error_rate",
    maximum=0.0,
    minimum=None,
    tolerance=None,
    required=False,
    where="built in (set error_rate in thresholds.toml to allow some)",
    text="≤ 0 %",
)


def failure_message(summary: Summary, verdicts: Sequence[Verdict], *, inconclusive_fails: bool) -> str | None:
    """What a failing test says, in at most twelve lines; None when nothing counts as a failure."""
    bad = [v for v in verdicts if v.counts_as_failure(inconclusive_fails=inconclusive_fails)]
    if not bad:
        return None
    head = f"{summary.engine} × {summary.workload}: {len(bad)} of {len(verdicts)} judgements failed"
    if summary.invalid:
        lines = [f"{summary.engine} × {summary.workload}: INVALID, nothing here can be judged"]
        lines += [f"  {reason}" for reason in summary.invalid]
    else:
        lines = [head, *(_line(v) for v in bad)]
    lines += [f"  note: {warning}" for warning in summary.warnings]
    if len(lines) > _MESSAGE_LINES:
        hidden = len(lines) - _MESSAGE_LINES + 1
        lines = [*lines[: _MESSAGE_LINES - 1], f"  … {hidden} more in the report"]
    return "\n".join(lines)


def comparison_message(verdicts: Sequence[Verdict], *, inconclusive_fails: bool) -> str | None:
    """What a failing comparison says, likewise; all verdicts are of one workload."""
    bad = [v for v in verdicts if v.counts_as_failure(inconclusive_fails=inconclusive_fails)]
    if not bad:
        return None
    head = f"{bad[0].subject} × {bad[0].workload}: {len(bad)} of {len(verdicts)} judgements failed"
    lines = [head, *(_line(v) for v in bad)]
    if len(lines) > _MESSAGE_LINES:
        hidden = len(lines) - _MESSAGE_LINES + 1
        lines = [*lines[: _MESSAGE_LINES - 1], f"  … {hidden} more in the report"]
    return "\n".join(lines)


def _line(verdict: Verdict) -> str:
    where = f" [{verdict.limit.where}]" if verdict.limit else ""
    return f"  {verdict.outcome}: {verdict.reason}{where}"
