"""The whole run in one frozen value: what every writer (terminal, Markdown, JSON) renders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.comparison import shown_change
from pytest_vllmperf.domain.environment import Environment
from pytest_vllmperf.domain.evidence import Evidence
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.redaction import Redactor, secrets_in
from pytest_vllmperf.domain.section import Section
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.thresholds import Outcome, Verdict
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["EngineReport", "Report", "Row", "builtin", "headline", "plain", "reason_without_log", "redacted", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What became of one engine of the matrix.

    ``state`` is ``measured``, ``skipped`` or ``failed``; ``reason`` says why for the latter two.
    ``launches`` counts launches in this run; ``evidence`` says which optimisations were active, ``warnings``
    what its log warned of, ``reused`` that it had served an earlier run. A report is written to disk and pasted into
    tickets, so secrets are cut out on construction: values of variables and flags whose name ends in ``token``,
    ``key``, ``secret`` or ``password`` (wherever they occur again), and passwords in URLs.
    """

    name: str
    model: str
    state: str
    reason: str | None
    command: tuple[str, ...]
    env: Mapping[str, str]
    version: str | None
    log_path: str | None
    launches: int
    evidence: tuple[Evidence, ...] = ()
    warnings: tuple[str, ...] = ()
    reused: bool = False

    def __post_init__(self) -> None:
        redactor = Redactor(secrets_in(self.env, self.command))
        clean = {
            "command": tuple(redactor.clean(part) for part in self.command),
            "env": {name: redactor.clean(value) for name, value in self.env.items()},
            "reason": None if self.reason is None else redactor.clean(self.reason),
        }
        for attribute, value in clean.items():
            object.__setattr__(self, attribute, value)


def redacted(text: str, *, env: Mapping[str, str], command: Sequence[str]) -> str:
    """``text`` without the secrets that ``env`` and ``command`` hold, and without what looks like one."""
    return Redactor(secrets_in(env, command)).clean(text)


def reason_without_log(reason: str) -> str:
    """The lines of an engine's ``reason`` before the excerpt from its log: what happened, the cause, the hint."""
    lines = [line.strip() for line in reason.strip().splitlines()]
    log = next((place for place, line in enumerate(lines) if line.startswith("log:")), len(lines))
    return "\n".join(" ".join(line.split()) for line in lines[:log] or lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run.

    ``problems`` are run-level reasons not to be green (nothing judged, unused limits, …); ``sections`` what others
    contributed (see :mod:`pytest_vllmperf.domain.section`).
    """

    started_at: str
    duration_s: float
    environment: Environment
    engines: tuple[EngineReport, ...]
    summaries: tuple[Summary, ...]
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]
    exit_code: int
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the engine × workload × metric table, as text.

    ``verdict`` is an outcome where something was judged, and otherwise says why the value is only
    shown (``shown: no limit``, ``shown: needs n ≥ 60``, ``not measured``).
    """

    engine: str
    workload: str
    metric: str
    value: str
    n: str
    limit: str
    verdict: str


_WORST_FIRST = (Outcome.FAIL, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.PASS, Outcome.NOT_JUDGED)


def rows(report: Report) -> tuple[Row, ...]:
    """The table, grouped by engine and workload; in each group what was judged stands before what is only shown.

    A metric judged several times appears once, with its worst outcome. A measurement without any
    verdict shows its scalars and the mean of each distribution, so that a first run has a table too.
    """
    verdicts = _worst_of_each(report.verdicts)
    table: list[Row] = []
    for engine, workload in _subjects(report):
        mine = [v for v in verdicts if (v.subject, v.workload) == (engine, workload)]
        table += [_judged_row(v) for v in sorted(mine, key=lambda v: v.outcome is Outcome.NOT_JUDGED)]
        if not mine:
            for summary in report.summaries:
                if (summary.engine, summary.workload) == (engine, workload) and not summary.experiment:
                    table += _shown_rows(summary)
    return tuple(table)


def _subjects(report: Report) -> tuple[tuple[str, str], ...]:
    """Every engine and workload there is something about, in order of measurement."""
    pairs = [(s.engine, s.workload) for s in report.summaries] + [(v.subject, v.workload) for v in report.verdicts]
    return tuple(dict.fromkeys(pairs))


def _worst_of_each(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """One verdict for each subject and metric: a later PASS never hides an earlier FAIL."""
    worst: dict[tuple[str, str, str], Verdict] = {}
    for verdict in verdicts:
        key = (verdict.subject, verdict.workload, verdict.metric)
        before = worst.get(key)
        if before is None or _WORST_FIRST.index(verdict.outcome) < _WORST_FIRST.index(before.outcome):
            worst[key] = verdict
    return tuple(worst.values())


def _judged_row(verdict: Verdict) -> Row:
    return Row(
        engine=verdict.subject,
        workload=verdict.workload,
        metric=verdict.metric,
        value=shown_change(verdict) or _level(verdict),
        n=str(verdict.n),
        limit=verdict.limit.text if verdict.limit else "",
        verdict=_verdict_cell(verdict),
    )


def _level(verdict: Verdict) -> str:
    """The value, with its bounds where there are some: ``412 ms [398 … 431]``."""
    value, interval = _quantity(verdict.value, verdict.metric), verdict.interval
    if interval is None or interval.low is None or interval.high is None:
        return value
    low, high = (_quantity(bound, verdict.metric) for bound in (interval.low, interval.high))
    unit = high.partition(" ")[2]
    return f"{value} [{low.removesuffix(f' {unit}') if unit else low} … {high}]"


def _verdict_cell(verdict: Verdict) -> str:
    if verdict.outcome is not Outcome.NOT_JUDGED:
        return verdict.word
    if verdict.value is None:
        return "not measured"
    if verdict.limit is None:
        return "shown: no limit"
    needed = metric(verdict.metric).minimum_samples
    return f"shown: needs n ≥ {needed}" if verdict.n < needed else "shown"


def _shown_rows(summary: Summary) -> list[Row]:
    verdict = str(Outcome.INVALID) if summary.invalid else "shown"
    return [
        Row(
            engine=summary.engine,
            workload=summary.workload,
            metric=value.name,
            value=_quantity(value.value, value.name),
            n=str(value.n),
            limit="",
            verdict=verdict,
        )
        for value in summary.metrics.values()
        if value.value is not None and metric(value.name).statistic in (None, "mean")
    ]


def _quantity(value: float | None, name: str) -> str:
    return format_quantity(value, unit=metric(name).unit)


def headline(verdicts: Sequence[Verdict], engines: Iterable[EngineReport], problems: Sequence[str]) -> str:
    """The verdict of the run in one sentence: what is wrong first, then how much was judged at all.

    Limits nobody wrote down count only when they are missed: they do not make a run a judged one.
    """
    states = [(e.state, e.name) for e in engines]
    counts = Counter(v.outcome for v in verdicts)
    own = Counter(v.outcome for v in verdicts if v.limit is not None and not v.built_in)
    judged = own.total() - own[Outcome.NOT_JUDGED]
    parts = [f"engine {name} failed" for state, name in states if state == "failed"]
    bad = (Outcome.FAIL, Outcome.INVALID, Outcome.INCONCLUSIVE)
    parts += [f"{counts[outcome]} {outcome}" for outcome in bad if counts[outcome]]
    if not judged:
        parts.append("nothing was judged")
    elif not parts:
        parts.append("every limit held")
    if problems:
        parts.append(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
    aside = []
    if judged:
        aside.append(f"{own[Outcome.PASS]} PASS of {judged} limit{'s' if judged > 1 else ''} judged")
    if counts[Outcome.NOT_JUDGED]:
        aside.append(f"{counts[Outcome.NOT_JUDGED]} only shown")
    skipped = [name for state, name in states if state == "skipped"]
    if skipped:
        aside.append(f"skipped: {', '.join(skipped)}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}" + (f" ({', '.join(aside)})" if aside else "")


def plain(value: object) -> object:
    """``value`` as JSON-safe builtins: dataclasses and mappings become dicts, tuples become lists.

    NaN and infinities become None, as neither exists in JSON and a missing value is None here.
    numpy scalars become numbers; anything else JSON does not know becomes its ``str``, because a
    report with one odd fact is worth more than none.
    """
    import msgspec

    builtins = msgspec.to_builtins(value, enc_hook=builtin, str_keys=True)
    return json.loads(json.dumps(builtins), parse_constant=lambda _name: None)


def builtin(value: object) -> object:
    """What stands in plain JSON for a value msgspec does not know: numbers for numpy's, else its ``str``."""
    import numpy as np

    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if isinstance(value, np.generic) else str(value)
