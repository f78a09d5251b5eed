"""The reference pages of the documentation, made from the code they describe.

mkdocs calls :func:`on_files` (see ``mkdocs.yml``), so that a build always shows the code beside it;
``python scripts/docs_reference.py DIR`` writes the same pages as files.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_ROLES = re.compile(r":(?:class|func|mod|meth|data):`~?([^`]*)`")


def metrics_page() -> str:
    """Every metric with unit, direction, tolerance and formula."""
    from pytest_vllmperf.domain.metrics import METRICS, STATISTICS

    lines = [
        "# Metrics",
        "",
        "Names as `thresholds.toml`, reports and history write them. A *distribution* is judged through its statistics: "
        + ", ".join(
            f"`_{s.name}`" + (f" (from {s.minimum_samples} samples)" if s.minimum_samples > 1 else "")
            for s in STATISTICS.values()
        )
        + ". *Tolerance* is the change a comparison accepts by default.",
        "",
        "| metric | unit | better | tolerance | kind | formula |",
        "|---|---|---|---:|---|---|",
    ]
    for entry in METRICS.values():
        if entry.statistic is None:
            kind = "distribution" if entry.distribution else "scalar"
            lines.append(
                f"| `{entry.name}` | {entry.unit} | {entry.better.value} | {entry.tolerance:.0%} | {kind} | {_cell(entry.formula)} |"
            )
    return "\n".join(lines)


def thresholds_page() -> str:
    """The keys of thresholds.toml, as its reader knows them."""
    from dataclasses import fields

    from pytest_vllmperf.adapters.threshold_file import choices, reader
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.domain.thresholds import MATCH_KEYS
    from pytest_vllmperf.domain.units import _UNITS

    def listed(names: Any) -> str:
        return ", ".join(f"`{name}`" for name in names)

    units = [f"| `{unit}` | {listed(allowed) or 'a bare number'} |" for unit, allowed in _UNITS.items()]
    return "\n".join(
        [
            "# thresholds.toml",
            "",
            "The file is read once and checked whole: every mistake in it is told before any engine starts.",
            "",
            "| where | keys |",
            "|---|---|",
            f"| top level | {listed(reader.TOP_LEVEL)} |",
            f"| `[defaults]` | {listed(reader.DEFAULTS)}; `inconclusive` is one of {listed(reader.INCONCLUSIVE)} |",
            f"| `match` of a `[[limit]]` | {listed(MATCH_KEYS)}; an absent key matches anything, globs are allowed |",
            f"| a metric of a `[[limit]]` | {listed(reader.LIMIT)} |",
            f"| `[[sweep]]` | {listed(choices.SWEEP)}; every engine where none are named |",
            f"| `[[choice]]` | {listed(choices.CHOICE)}; in `require`: {listed(choices.REQUIREMENT)} |",
            f"| `[quality.tasks.NAME]` | {listed(f.name for f in fields(QualityTask) if f.name != 'name')} |",
            "",
            "Of the tables that match, per metric, the one with most keys given exactly wins, then the one with most given by "
            "glob; a tie is an error that names both. `max` fits what is better lower, `min` what is better higher. "
            "`tolerance` is what a comparison accepts; `required = true` lets INCONCLUSIVE fail.",
            "",
            "## Units",
            "",
            "| base unit | may be written in |",
            "|---|---|",
            *units,
            "",
            "## Metrics",
            "",
            "Every name of [the catalogue](metrics.md): scalars, and statistics of distributions.",
        ]
    )


class _Options:
    """Collects what ``add_options`` declares."""

    def __init__(self) -> None:
        self.options: list[tuple[str, str, str]] = []
        self.ini: list[tuple[str, str, str]] = []

    def getgroup(self, *_names: str) -> _Options:
        return self

    def addoption(self, *names: str, **attributes: Any) -> None:
        choices = attributes.get("choices")
        value = attributes.get("metavar") or ("|".join(map(str, choices)) if choices else "")
        self.options.append((names[0], str(value), str(attributes.get("help", ""))))

    def addini(self, name: str, help: str, default: object = "", **_more: Any) -> None:  # noqa: A002 - pytest's name
        self.ini.append((name, str(default), help))


def options_page() -> str:
    """Every option and ini key of the plugin."""
    from pytest_vllmperf.options import add_options

    seen = _Options()
    add_options(seen)  # type: ignore[arg-type]
    return "\n".join(
        [
            "# Options of pytest",
            "",
            "All of them do nothing in a project that declares no engines.",
            "",
            "| option | does |",
            "|---|---|",
            *(f"| `{name}{'=' + value if value else ''}` | {_cell(text)} |" for name, value, text in seen.options),
            "",
            "| ini key | default | |",
            "|---|---|---|",
            *(f"| `{name}` | `{default}` | {_cell(text)} |" for name, default, text in seen.ini),
        ]
    )


def hooks_page() -> str:
    """Hooks and fixtures with their documentation."""
    from pytest_vllmperf import fixtures, hookspecs

    lines = ["# Hooks and fixtures", "", "## Hooks", "", "Implement them in a `conftest.py`, or in a plugin.", ""]
    for name, function in vars(hookspecs).items():
        if name.startswith("pytest_vllmperf_"):
            lines += [f"### `{name}{_signature(function)}`", "", _prose(function.__doc__), ""]
    lines += ["## Fixtures", ""]
    for name, value in vars(fixtures).items():
        function = getattr(value, "__wrapped__", getattr(value, "_fixture_function", None))
        if name.startswith("vllm_") and function is not None:
            lines += [f"### `{name}`", "", _prose(function.__doc__), ""]
    return "\n".join(lines)


def declarations_page() -> str:
    """What conftest.py declares things with."""
    import pytest_vllmperf

    lines = ["# Declarations", "", "What `conftest.py` is written with. All are `from pytest_vllmperf import …`.", ""]
    for name in (
        "EngineConfig",
        "Workload",
        "ServiceLevel",
        "QualityTask",
        "RandomPrompts",
        "SharedPrefix",
        "Conversations",
        "FillContext",
        "PromptLines",
        "ShareGPT",
    ):
        value = getattr(pytest_vllmperf, name)
        lines += [f"## `{name}`", "", _prose(value.__doc__), ""]
    return "\n".join(lines)


def exit_codes_page() -> str:
    """The exit codes."""
    from pytest_vllmperf.domain.gate import ExitCode

    meanings = {
        "OK": "something was judged, nothing failed, nothing INVALID (INCONCLUSIVE only as a listed warning)",
        "FAILED": "a limit was missed, or an ordinary test failed",
        "INVALID": "a measurement is broken, and nothing failed",
        "INCONCLUSIVE": "too little evidence, where that counts as failure, and nothing failed or is INVALID",
        "NOTHING_JUDGED": "nothing was judged, or a limit that applies here was never looked at (`--vllmperf-record-only` makes that 0)",
    }
    rows = [f"| {code.value} | {meanings[code.name]} |" for code in ExitCode]
    rows.insert(
        2,
        "| 2, 3, 4, 5 | pytest's own: interrupted, internal error, usage error (a wrong thresholds file, a wrong engine), no tests collected |",
    )
    return "\n".join(
        [
            "# Exit codes",
            "",
            "| code | meaning |",
            "|---|---|",
            *rows,
            "",
            "`vllmperf` commands end with 0, with 2 for wrong usage or input, and with 130 after Ctrl-C; those that judge use the "
            "codes above.",
        ]
    )


def hints_page() -> str:
    """Every hint for a known failure."""
    from pytest_vllmperf.domain.hints import HINTS

    rows = [f"| `{h.id}` | {_cell(h.advice.replace('{{', '{').replace('}}', '}'))} |" for h in HINTS]
    return "\n".join(
        [
            "# Hints for known failures",
            "",
            "Shown, with the id in brackets, where an engine does not start, dies or refuses a request. Words in braces are filled "
            "in from the message. [The catalogue](../hints.md) groups them by row.",
            "",
            "| id | advice |",
            "|---|---|",
            *rows,
        ]
    )


def command_page() -> str:
    """Every subcommand with its help."""
    from pytest_vllmperf import cli

    lines = ["# The command `vllmperf`", "", "```", _help(cli, ["--help"]), "```", ""]
    for name in cli.command_names():
        lines += [f"## `vllmperf {name}`", "", "```", _help(cli, [name, "--help"]), "```", ""]
    return "\n".join(lines)


def schema_page() -> str:
    """report.json and its schema."""
    from pytest_vllmperf.adapters.writers import SCHEMA_VERSION, report_schema

    return "\n".join(
        [
            "# report.json",
            "",
            f"Version {SCHEMA_VERSION}, in `schema_version`. It is raised when a key changes its meaning or goes, not when one is "
            "added: readers must ignore keys they do not know. `vllmperf report --schema` prints this schema.",
            "",
            "```json",
            json.dumps(report_schema(), indent=2, ensure_ascii=False),
            "```",
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "metrics": metrics_page,
    "thresholds": thresholds_page,
    "options": options_page,
    "declarations": declarations_page,
    "hooks": hooks_page,
    "command": command_page,
    "exit-codes": exit_codes_page,
    "hints": hints_page,
    "report-json": schema_page,
}
"""Pages by file name under ``reference/``."""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _prose(text: str | None) -> str:
    """A docstring as Markdown: literals, and arguments as a list."""
    plain = _ROLES.sub(lambda m: f"`{m[1].rpartition('.')[2]}`", inspect.cleandoc(text or "")).replace("``", "`")
    plain = plain.replace("::\n", ":\n")
    out: list[str] = []
    inside = False
    for line in plain.splitlines():
        if line in ("Args:", "Raises:", "Returns:"):
            inside = True
            out += ["", f"**{line}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(":")
            out.append(f"- `{name}`:{rest}" if colon else f"- {line.strip()}")
        elif inside and line.startswith("     "):
            out.append(f"  {line.strip()}")
        else:
            inside = inside and not line.strip()
            out.append(line)
    return "\n".join(out)


def _signature(function: Callable[..., object]) -> str:
    return f"({', '.join(inspect.signature(function).parameters)})"


def _help(cli: Any, arguments: list[str]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main(arguments)
    return said.getvalue().rstrip()


def pages() -> Iterator[tuple[str, str]]:
    """File name and text of every page."""
    for name, make in PAGES.items():
        yield f"{name}.md", make() + "\n"


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add the reference to the site."""
    file = importlib.import_module("mkdocs.structure.files").File
    for name, text in pages():
        files.append(file.generated(config, f"reference/{name}", content=text))
    return files


def main() -> None:
    """Write the pages into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (directory / name).write_text(text, encoding="utf-8")
        print(directory / name)  # noqa: T201 - a script


if __name__ == "__main__":
    sys.exit(main())
