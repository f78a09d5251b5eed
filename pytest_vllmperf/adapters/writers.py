"""A Report as files and lines: report.json for machines, report.md for a CI step summary, a terminal table."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shlex
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.report import headline, plain, reason_without_log, rows
from pytest_vllmperf.domain.thresholds import Outcome
from pytest_vllmperf.domain.units import format_quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_vllmperf.domain.report import EngineReport, Report, Row
    from pytest_vllmperf.domain.section import Forest, Section, Table
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Verdict

__all__ = ["SCHEMA_VERSION", "report_schema", "terminal_table", "write_json", "write_markdown"]

SCHEMA_VERSION = 1
"""Of report.json; raised when a key changes its meaning or goes, not when one is added."""


_SCHEMA_URI = f"urn:pytest-vllmperf:report:{SCHEMA_VERSION}"


def report_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``report.json``, made from the types it is written from.

    Keys may be added under one version: readers must ignore those they do not know.
    """
    import msgspec

    from pytest_vllmperf.domain.report import Report

    schema = msgspec.json.schema(Report, schema_hook=lambda _type: {"description": "any JSON value"})
    definitions = schema.pop("$defs")
    for name in ("MetricValue", "Series"):  # a value that is not finite is written as null
        for key in ("samples", "values"):
            if key in definitions[name]["properties"]:
                definitions[name]["properties"][key]["items"] = {"type": ["number", "null"]}
    root = definitions.pop("Report")
    root["properties"] = {
        "$schema": {"const": _SCHEMA_URI},
        "schema_version": {"const": SCHEMA_VERSION},
        "headline": {"type": "string", "description": "The verdict of the run in one sentence."},
        **root["properties"],
    }
    root["required"] = ["schema_version", "headline", *root["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _SCHEMA_URI,
        "title": "report.json of pytest-vllmperf",
        **{key: value for key, value in root.items() if key != "title"},
        "$defs": definitions,
    }


def write_json(report: Report, path: Path) -> None:
    """Write the whole report as JSON without NaN, a list of numbers on one line.

    Samples are there as measured, but of what has more samples than the measurement has requests (gaps between
    tokens) at most 1 001 stand for all: the smallest, the largest and those at even steps of rank between them.
    Their number, ``n``, is that of all. Every gap is in the history.

    The file appears whole or not at all; an earlier one stays until then.

    Raises:
        OSError: ``path`` cannot be written.
    """
    content = {
        "$schema": _SCHEMA_URI,
        "schema_version": SCHEMA_VERSION,
        "headline": _headline(report),
        **_fields(report),
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
    _write(path, _LISTS_OF_NUMBERS.sub(_on_one_line, text) + "\n")


_LISTS_OF_NUMBERS = re.compile(r"(?<=\[)\n(?: +(?:null|-?[0-9][0-9.eE+-]*),?\n)+ *(?=\])")
"""A list of numbers as ``json.dumps`` indents it. No text looks like it: inside of one a line break is escaped."""


def _on_one_line(found: re.Match[str]) -> str:
    return ", ".join(found.group().replace(",", " ").split())


def _fields(report: Report) -> dict[str, object]:
    slim = replace(report, summaries=tuple(_thinned(summary) for summary in report.summaries))
    fields = plain(slim)
    return fields if isinstance(fields, dict) else {}


_MOST_SAMPLES = 1001


def _thinned(summary: Summary) -> Summary:
    """``summary`` with at most ``_MOST_SAMPLES`` of what is measured many times in each request."""
    most = max(summary.requests, _MOST_SAMPLES)
    many = {name: value for name, value in summary.metrics.items() if len(value.samples) > most}
    if not many:
        return summary
    thin = {name: replace(value, samples=_at_even_ranks(value.samples)) for name, value in many.items()}
    return replace(summary, metrics={**summary.metrics, **thin})


def _at_even_ranks(samples: Sequence[float]) -> tuple[float, ...]:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return tuple(ordered[round(i * last / (_MOST_SAMPLES - 1))] for i in range(_MOST_SAMPLES))


def _headline(report: Report) -> str:
    return headline(report.verdicts, report.engines, report.problems)


def _write(path: Path, text: str) -> None:
    """Replace ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A lone surrogate (an undecodable file name) becomes \udcXX, which is what JSON calls it too.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_markdown(report: Report, path: Path) -> None:
    """Write the report as GitHub-flavoured Markdown: the verdict first, then why, then everything else.

    Whatever came from an engine, a file or a user is escaped: it can neither break a table nor
    bring HTML or markup of its own.

    Raises:
        OSError: ``path`` cannot be written.
    """
    blocks = [
        ["# vLLM performance report"],
        [f"**{_md(_headline(report))}.** Exit code {report.exit_code}."],
        _list("Problems", [_md(problem) for problem in report.problems]),
        _list("Failures", [*_failed_engines(report), *_failed_verdicts(report.verdicts)]),
        _results(report),
        *(_section(section) for section in report.sections),
        _list("Warnings", _warnings(report)),
        _engines(report.engines),
        _optimisations(report.engines),
        _environment(report),
    ]
    _write(path, "\n\n".join("\n".join(block) for block in blocks if block) + "\n")


def _list(title: str, items: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {item}" for item in items)] if items else []


def _failed_engines(report: Report) -> Iterator[str]:
    for engine in report.engines:
        if engine.state == "failed":
            log = f" (log: {_md(engine.log_path)})" if engine.log_path else ""
            yield f"**{_md(engine.name)} failed**: {_md(engine.reason or 'no reason known')}{log}"


def _failed_verdicts(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """One line for each thing wrong; metrics of one broken measurement share theirs."""
    shared: dict[tuple[str, ...], dict[str, str]] = {}
    for v in verdicts:
        if v.outcome not in (Outcome.PASS, Outcome.NOT_JUDGED):
            where = f" ({v.limit.where})" if v.limit is not None and v.outcome is not Outcome.INVALID else ""
            shared.setdefault((str(v.outcome), v.engine, v.workload, v.reason + where), {})[v.metric] = v.metric
    for (outcome, engine, workload, reason), metrics in shared.items():
        yield f"**{outcome}** {_md(f'{engine} / {workload}')} / {_md(', '.join(metrics))}: {_md(reason)}"


def _results(report: Report) -> list[str]:
    header = ("Engine", "Workload", "Metric", "Value", "n", "Limit", "Verdict")
    body = [(r.engine, r.workload, r.metric, r.value, r.n, r.limit, r.verdict) for r in rows(report)]
    if not body:
        return ["## Results", "", "Nothing was measured."]
    return ["## Results", "", *_table(header, body, right=("Value", "n"), bold=_BAD)]


_BAD = frozenset(str(outcome) for outcome in (Outcome.FAIL, Outcome.INVALID, Outcome.INCONCLUSIVE))


def _table(
    header: Sequence[str], body: Iterable[Sequence[str]], *, right: Sequence[str] = (), bold: Iterable[str] = ()
) -> list[str]:
    """A Markdown table of escaped cells; cells that are one of ``bold`` stand out."""
    loud = frozenset(bold)
    rule = ["---:" if title in right else "---" for title in header]
    lines = [[f"**{cell}**" if cell in loud else _md(cell) for cell in line] for line in body]
    return [f"| {' | '.join(cells)} |" for cells in (list(header), rule, *lines)]


def _section(section: Section) -> list[str]:
    """A contributed section: its sentences, tables, forest plots as tables, notes."""
    tables = [_contributed(table) for table in section.tables]
    tables += [_estimates(forest) for forest in section.forests if forest.rows]
    blocks = [
        [f"**{_md(sentence)}**" for sentence in section.sentences],
        *tables,
        [_md(note) for note in section.notes],
    ]
    lines = [f"## {_md(section.title)}"]
    for block in blocks:
        lines += ["", *block] if block else []
    return lines


def _contributed(table: Table) -> list[str]:
    body = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    lines = _table(table.head, body, right=table.right, bold=_BAD)
    return [*([_md(table.title), ""] if table.title else []), *lines, *(["", _md(table.note)] if table.note else [])]


def _estimates(forest: Forest) -> list[str]:
    def shown(value: float) -> str:
        return format_quantity(value, unit=forest.unit)

    body = [(r.label, shown(r.estimate), f"[{shown(r.low)}, {shown(r.high)}]", r.text) for r in forest.rows]
    return [_md(forest.title), "", *_table(("", "Estimate", "Interval", ""), body, right=("Estimate",), bold=_BAD)]


def _warnings(report: Report) -> list[str]:
    about_runs = [f"{s.engine} / {s.workload}: {warning}" for s in report.summaries for warning in s.warnings]
    of_engines = [f"{e.name}: {warning}" for e in report.engines for warning in e.warnings]
    return [_md(warning) for warning in (*report.environment.warnings, *of_engines, *about_runs)]


def _engines(engines: Sequence[EngineReport]) -> list[str]:
    if not engines:
        return []
    header = ("Engine", "Model", "State", "Version", "Launches")
    body = [
        (e.name, e.model, f"{e.state}: {e.reason}" if e.reason else e.state, e.version or "", str(e.launches))
        for e in engines
    ]
    commands = [f"- {_md(e.name)}: <code>{_md(_shell_line(e))}</code>" for e in engines if e.command]
    return ["## Engines", "", *_table(header, body), *([""] if commands else []), *commands]


def _shell_line(engine: EngineReport) -> str:
    """The launch as one could type it; to be read, as secrets are cut out."""
    return shlex.join([*(f"{name}={value}" for name, value in engine.env.items()), *engine.command])


def _optimisations(engines: Sequence[EngineReport]) -> list[str]:
    """What is active, what was asked for, and what nobody can tell; not what nobody asked for and is not there."""
    header = ("Engine", "Optimisation", "Asked", "State", "Active", "Proof")
    body = [
        (
            engine.name,
            item.optimisation,
            item.requested or "",
            f"{item.state}, not as asked" if item.met is False else item.state,
            item.value or "",
            item.proof,
        )
        for engine in engines
        for item in engine.evidence
        if item.requested is not None or item.state != "refuted"
    ]
    if not body:
        return []
    return ["## Optimisations", "", *_table(header, body, bold=("refuted, not as asked", "confirmed, not as asked"))]


def _environment(report: Report) -> list[str]:
    here = report.environment
    state = {True: " with uncommitted changes", False: "", None: ""}[here.dirty]
    gpus = [f"{g.name} ({format_quantity(g.memory_bytes, unit='B')})" for g in here.gpus]
    facts: Mapping[str, str | None] = {
        "Hardware": here.hardware,
        "GPUs": ", ".join(gpus) or "none",
        "Driver": here.driver,
        "CPU": f"{here.cpu}, {here.cores} cores, {format_quantity(here.memory_bytes, unit='B')}",
        "Platform": here.platform,
        "Python": here.python,
        "Packages": ", ".join(f"{name} {version}" for name, version in sorted(here.packages.items())),
        "Commit": f"{here.commit}{state}" if here.commit else None,
        "Started": report.started_at,
        "Took": format_quantity(report.duration_s, unit="s"),
    }
    known = [(name, value) for name, value in facts.items() if value]
    return ["## Environment", "", *_table(("Fact", "Value"), known)]


_ESCAPE_SEQUENCE = re.compile(
    r"\x1b (?: \[ [0-?]* [ -/]* [@-~] | \] [^\x07\x1b]* (?:\x07|\x1b\\)? | [@-Z\\-_] )", re.VERBOSE
)


def _line(text: str) -> str:
    """``text`` as one line of printable characters: no escape sequences, line breaks or hidden characters."""
    visible = _ESCAPE_SEQUENCE.sub("", text)
    return " ".join("".join(c if c.isprintable() else " " for c in visible).split())


_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^(?:[#+=-]+|[0-9]+[.)])(?=\s|$)")


def _md(text: str) -> str:
    """``text`` as literal text of one Markdown line."""
    return _MARKUP.sub(_backslashed, html.escape(_line(text), quote=False))


def _backslashed(found: re.Match[str]) -> str:
    marker = found.group()
    return f"{marker[:-1]}\\{marker[-1]}"


_GAP = "  "
_COLUMNS = ("metric", "value", "n", "limit", "verdict")
_NUMBERS = ("value", "n")
_NARROWEST = 40


def terminal_table(report: Report, *, width: int = 100) -> list[str]:
    """The table as plain lines of at most ``width`` columns (40 at least), the verdict last in each.

    Grouped by engine and workload; a group says what was asked, and why it is INVALID where it is.
    Engines that were not measured follow with their reason. No colours: those are the caller's.
    """
    width = max(width, _NARROWEST)
    table = rows(report)
    columns = _widths(table, width)
    asked = {(s.engine, s.workload): s for s in report.summaries}
    lines: list[str] = []
    for (engine, workload), group in itertools.groupby(table, key=lambda row: (row.engine, row.workload)):
        summary = asked.get((engine, workload))
        about = f": {summary.description}, {summary.completed}/{summary.requests} completed" if summary else ""
        lines.append(_cut(f"{engine} / {workload}{about}", width))
        for reason in summary.invalid if summary else ():
            lines += _wrapped(f"INVALID because {reason}", width)
        lines += [_aligned(_cells(row), columns) for row in group]
    for engine_report in report.engines:
        if engine_report.state != "measured":
            first, *rest = reason_without_log(engine_report.reason or "?").splitlines() or ["?"]
            lines += _wrapped(f"{engine_report.name} {engine_report.state}: {first}", width)
            lines += [line for text in rest for line in _wrapped(text, width, _GAP * 2)]
            if engine_report.state == "failed" and engine_report.log_path:
                lines += _wrapped(f"log: {engine_report.log_path}", width, _GAP * 2)
    return [_aligned(dict(zip(_COLUMNS, _COLUMNS, strict=True)), columns), *lines] if table else lines


def _cells(row: Row) -> dict[str, str]:
    return {name: _line(getattr(row, name)) for name in _COLUMNS}


def _widths(table: Sequence[Row], width: int) -> dict[str, int]:
    """Widths that fit; where the content is wider, the widest column gives way first."""
    cells = [_cells(row) for row in table]
    widths = {name: max([len(name), *(len(line[name]) for line in cells)]) for name in _COLUMNS}
    available = width - len(_GAP) * len(_COLUMNS)
    while sum(widths.values()) > available:
        widest = max(widths, key=lambda name: widths[name])
        widths[widest] -= 1
    return widths


def _aligned(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    parts = []
    for name, columns in widths.items():
        text = _cut(cells[name], columns)
        parts.append(text.rjust(columns) if name in _NUMBERS else text.ljust(columns))
    return (_GAP + _GAP.join(parts)).rstrip()


def _cut(text: str, columns: int) -> str:
    text = _line(text)
    return text if len(text) <= columns else f"{text[: columns - 1]}…"


def _wrapped(text: str, width: int, indent: str = _GAP) -> list[str]:
    """Lines of ``text``. None of them begins with ``::``, as GitHub would take it for a command."""
    lines = textwrap.wrap(
        _line(text), width - 1, initial_indent=indent, subsequent_indent=_GAP * 2, break_on_hyphens=False
    )
    return [re.sub(r"^( *)::", r"\1\\::", line) for line in lines]
