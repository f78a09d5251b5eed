"""A Report arranged as the page shows it: every text and number ready, nothing left to decide for the template."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from pytest_vllmperf.adapters.html_report.comparison import Comparison, comparisons
from pytest_vllmperf.adapters.html_report.contributed import DrawnSection, drawn_section
from pytest_vllmperf.adapters.html_report.measurement import Measurement, measurements
from pytest_vllmperf.adapters.html_report.nightly import Changes, changes, trend_section
from pytest_vllmperf.adapters.html_report.overview import Overview, overview
from pytest_vllmperf.adapters.html_report.pareto import pareto_section
from pytest_vllmperf.adapters.html_report.table import Line, css_class, lines, tally, wrong
from pytest_vllmperf.adapters.html_report.trends import PastRun, Trends
from pytest_vllmperf.domain.metrics import METRICS, metric
from pytest_vllmperf.domain.report import headline, reason_without_log
from pytest_vllmperf.domain.units import format_quantity

if TYPE_CHECKING:
    from pytest_vllmperf.domain.evidence import Evidence
    from pytest_vllmperf.domain.report import EngineReport, Report
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.domain.summary import MetricValue, Summary

__all__ = ["EngineCard", "Page", "QualityRow", "arrange"]

_WRONG_SHOWN = 40
"""Longer lists of what is wrong end in a pointer to the table, which has them all."""


_AT_ONCE = 40
"""More measurements than this hand their evidence to the browser only when they come near its window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One engine.

    ``command`` is its launch as one could type it (to be read, as secrets are cut out), in pieces that
    belong together; ``why`` its reason without the excerpt from its log; ``log_url`` is relative to the page, None
    for a log that does not lie beside it; ``evidence`` is without what nobody asked for and is not there.
    """

    id: str
    engine: EngineReport
    kind: str
    command: tuple[str, ...]
    why: str
    log_url: str | None
    log_name: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One answer as the gated filter read it."""

    question: str
    right: bool
    answer: str
    read_as: str
    expected: str
    ended: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRow:
    """One quality task on one engine: the score, other filters' scores, and how far the answers can be believed.

    ``bar`` is the score's interval and the score itself, then its limit if any, in units of 100; ``rates`` are those
    above zero or unknown, ``clean`` the names of the others.
    """

    engine: str
    task: str
    target: str
    score: str
    questions: str
    invalid: bool
    filters: tuple[tuple[str, str], ...]
    rates: tuple[tuple[str, str], ...]
    clean: tuple[str, ...]
    bar: tuple[float, float, float, float | None] | None
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything the template shows."""

    report: Report
    headline: str
    good: bool
    facts: tuple[tuple[str, str], ...]
    tally: tuple[tuple[str, str, int, int], ...]
    wrong: tuple[tuple[Line, str], ...]
    wrong_hidden: int
    overview: Overview | None
    lines: tuple[Line, ...]
    past_runs: int
    comparisons: tuple[Comparison, ...]
    sections: tuple[DrawnSection, ...]
    changes: Changes | None
    targets: Mapping[tuple[str, str], str]
    later: bool
    measurements: tuple[Measurement, ...]
    quality: tuple[QualityRow, ...]
    engines: tuple[EngineCard, ...]
    engine_ids: Mapping[str, str]
    environment: tuple[tuple[str, str], ...]
    glossary: tuple[tuple[str, str, str, str], ...]


def arrange(report: Report, *, folder: Path, history: Sequence[PastRun]) -> Page:
    """Arrange ``report`` for a page in ``folder``; ``history`` is oldest first and without this run."""
    targets = {(s.engine, s.workload): f"m{i}" for i, s in enumerate(report.summaries, 1)}
    trends = Trends(report, history)
    table = lines(report, targets, trends)
    by_subject: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in table:
        by_subject[line.row.engine, line.row.workload].append(line)
    bad = wrong(table)
    cards = tuple(_card(engine, i, folder) for i, engine in enumerate(report.engines, 1))
    return Page(
        report=report,
        headline=headline(report.verdicts, report.engines, report.problems),
        good=report.exit_code == 0,
        facts=tuple(_facts(report)),
        tally=tally(table),
        wrong=bad[:_WRONG_SHOWN],
        wrong_hidden=max(0, len(bad) - _WRONG_SHOWN),
        overview=overview(report, targets, by_subject),
        lines=table,
        past_runs=len(history) if any(line.trend for line in table) else 0,
        comparisons=comparisons(report, targets),
        sections=tuple(drawn_section(section, targets) for section in _sections(report, trends)),
        changes=changes(report, history, trends),
        targets=targets,
        later=len(report.summaries) > _AT_ONCE,
        measurements=measurements(report, targets, by_subject),
        quality=tuple(
            _quality(s, targets[s.engine, s.workload], _floors(report)) for s in report.summaries if s.kind == "quality"
        ),
        engines=cards,
        engine_ids={card.engine.name: card.id for card in cards},
        environment=tuple(_environment(report)),
        glossary=_glossary(report),
    )


def _sections(report: Report, trends: Trends) -> Iterator[Section]:
    """What others contributed, then what the page adds by itself where nobody else did."""
    yield from report.sections
    there = {section.id for section in report.sections}
    for section in (pareto_section(report), trend_section(report, trends, judged="history" in there)):
        if section is not None and section.id not in there:
            yield section


def _card(engine: EngineReport, place: int, folder: Path) -> EngineCard:
    return EngineCard(
        id=f"e{place}",
        engine=engine,
        kind=css_class(engine.state),
        command=tuple(_pieces([*(f"{name}={value}" for name, value in engine.env.items()), *engine.command])),
        why=reason_without_log(engine.reason or "no reason known"),
        log_url=(url := _relative_url(engine.log_path, folder)),
        log_name=unquote(url or "").removeprefix("./"),
        evidence=tuple(e for e in engine.evidence if e.requested is not None or e.state != "refuted"),
    )


def _pieces(words: Sequence[str]) -> Iterator[str]:
    """Shell words; a flag and its value are one piece, so that lines break between flags."""
    flag = ""
    for word in map(shlex.quote, words):
        if word.startswith("-"):
            if flag:
                yield flag
            flag = word
        else:
            yield f"{flag} {word}" if flag else word
            flag = ""
    if flag:
        yield flag


def _relative_url(path: str | None, folder: Path) -> str | None:
    """``path`` as a link that keeps working when the folder moves; None unless it lies inside ``folder``."""
    if path is None:
        return None
    try:
        inside = Path(path).absolute().relative_to(folder.absolute())
    except ValueError:
        return None
    if ".." in inside.parts:
        return None
    return "./" + quote(inside.as_posix(), errors="surrogateescape")


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    """The few facts that stand at the top."""
    here = report.environment
    models = ", ".join(dict.fromkeys(engine.model for engine in report.engines))
    versions = ", ".join(dict.fromkeys(engine.version for engine in report.engines if engine.version))
    yield "Hardware", here.hardware
    if here.driver:
        yield "Driver", here.driver
    if versions or here.packages.get("vllm"):
        yield "vLLM", versions or here.packages["vllm"]
    if here.packages.get("torch"):
        yield "torch", here.packages["torch"]
    if models:
        yield "Model", models
    if here.commit:
        yield "Commit", here.commit[:12] + ("+" if here.dirty else "")
    yield "Started", report.started_at.replace("T", " ").replace("+00:00", " UTC")
    yield "Took", format_quantity(report.duration_s, unit="s")
    yield "Exit code", str(report.exit_code)


def _environment(report: Report) -> Iterator[tuple[str, str]]:
    here = report.environment
    changes = {True: " with uncommitted changes", False: ", nothing uncommitted", None: ""}[here.dirty]
    gpus = [f"{g.index}: {g.name} ({format_quantity(g.memory_bytes, unit='B')}) {g.uuid}" for g in here.gpus]
    yield "Hardware", here.hardware
    yield "GPUs", "\n".join(gpus) or "none"
    if here.driver:
        yield "Driver", here.driver
    yield "CPU", f"{here.cpu}, {here.cores} cores, {format_quantity(here.memory_bytes, unit='B')}"
    yield "Platform", here.platform
    yield "Python", here.python
    yield "Packages", ", ".join(f"{name} {version}" for name, version in sorted(here.packages.items())) or "unknown"
    yield "Commit", f"{here.commit}{changes}" if here.commit else "unknown"


_RATES = {
    "error_rate": "failed",
    "empty_rate": "empty",
    "truncated_rate": "cut at the token limit",
    "unextracted_rate": "no answer found",
    "disagreement": "filters disagree",
    "stop_string_rate": "stopped by a stop string",
    "early_stop_rate": "stopped before the answer",
    "misread_rate": "misread",
    "identical_rate": "identical",
    "loop_rate": "looping",
    "thinking_cut_rate": "cut while thinking",
}


def _quality(summary: Summary, target: str, limits: Mapping[tuple[str, str], float]) -> QualityRow:
    accuracy = summary.metrics.get("accuracy")
    rates = [(_RATES.get(name, name), rate) for name, rate in _numbers(summary.facts.get("rates"))]
    interval = _interval(accuracy)
    limit = limits.get((summary.engine, summary.workload))
    return QualityRow(
        engine=summary.engine,
        task=summary.workload,
        target=target,
        score=_score(accuracy, interval),
        questions=f"{accuracy.n if accuracy else 0} of {summary.requests}",
        invalid=bool(summary.invalid),
        filters=tuple((name, _percent(score)) for name, score in _numbers(summary.facts.get("filters"))),
        rates=tuple((name, _percent(rate)) for name, rate in rates if rate != 0),
        clean=tuple(name for name, rate in rates if rate == 0),
        bar=_bar(accuracy, interval, limit),
        examples=tuple(_examples(summary.facts.get("examples"))),
    )


def _floors(report: Report) -> dict[tuple[str, str], float]:
    """The lowest score that is allowed, by engine and task."""
    return {
        (v.engine, v.workload): v.limit.minimum
        for v in report.verdicts
        if v.metric == "accuracy" and v.limit is not None and v.limit.minimum is not None and not v.against
    }


def _examples(fact: object) -> Iterator[Example]:
    """The answers kept with a task; a fact of another shape has none."""
    for item in fact if isinstance(fact, (list, tuple)) else ():
        if isinstance(item, Mapping):
            yield Example(
                question=f"question {item.get('doc_id', '?')}",
                right=bool(item.get("right")),
                answer=str(item.get("answer") or "(empty)"),
                read_as=str(item.get("read_as") or "(nothing found)"),
                expected=str(item.get("expected") or ""),
                ended=str(item.get("finish_reason") or ""),
            )


def _interval(accuracy: MetricValue | None) -> tuple[float, float] | None:
    """The exact 95 % interval of a score, where every question is right or wrong."""
    samples = () if accuracy is None or accuracy.value is None else accuracy.samples
    if len(samples) < 2 or not set(samples) <= {0.0, 1.0}:
        return None
    from scipy.stats import binomtest

    bounds = binomtest(round(sum(samples)), len(samples)).proportion_ci(0.95)
    return float(bounds.low), float(bounds.high)


def _score(accuracy: MetricValue | None, interval: tuple[float, float] | None) -> str:
    if accuracy is None or interval is None:
        return _percent(None if accuracy is None else accuracy.value)
    low = _percent(interval[0]).removesuffix(" %")
    return f"{_percent(accuracy.value)} [{low} … {_percent(interval[1])}]"


def _bar(
    accuracy: MetricValue | None, interval: tuple[float, float] | None, limit: float | None
) -> tuple[float, float, float, float | None] | None:
    if accuracy is None or accuracy.value is None or not 0 <= accuracy.value <= 1:
        return None
    low, high = interval or (accuracy.value, accuracy.value)
    marked = None if limit is None else round(100 * limit, 1)
    return round(100 * low, 1), round(100 * high, 1), round(100 * accuracy.value, 1), marked


def _numbers(fact: object) -> Iterator[tuple[str, float | None]]:
    """The entries of a mapping of numbers; a fact of another shape has none."""
    if isinstance(fact, Mapping):
        for name, value in fact.items():
            if value is None or isinstance(value, (int, float)):
                yield str(name), value


def _percent(value: float | None) -> str:
    return format_quantity(value, unit="ratio")


def _glossary(report: Report) -> tuple[tuple[str, str, str, str], ...]:
    """Name, unit, direction and formula of every metric that was measured."""
    measured = {name for summary in report.summaries for name in summary.metrics}
    families = dict.fromkeys(metric(name).family or name for name in METRICS if name in measured)
    direction = {"lower": "lower is better", "higher": "higher is better", "neither": "neither is better"}
    entries = (metric(name) for name in families)
    return tuple((m.name, m.unit, direction[m.better.value], m.formula) for m in entries)
