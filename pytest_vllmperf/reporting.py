"""A finished Report in every format that was asked for: one way for a run, a merge and a rebuilt report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import ConfigError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.html_report import PastRun
    from pytest_vllmperf.domain.report import Report

__all__ = ["DEFAULT_FORMATS", "FORMATS", "parse_formats", "write_reports"]

FORMATS = {
    "html": "index.html",
    "md": "report.md",
    "json": "report.json",
    "prom": "metrics.prom",
    "csv": "requests/",
}
"""Formats by the name ``--vllmperf-report`` takes, each with what it leaves in the report directory."""
DEFAULT_FORMATS = ("html", "md", "json")


def parse_formats(text: str) -> tuple[str, ...]:
    """Read ``html,md,json``, in the order of ``FORMATS``.

    Raises:
        ConfigError: One is unknown, or none is named.
    """
    asked = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(asked - set(FORMATS))
    if unknown or not asked:
        what = f"unknown: {', '.join(unknown)}" if unknown else "no format named"
        raise ConfigError(f"--vllmperf-report={text}: {what}; allowed: {', '.join(FORMATS)}, separated by commas")
    return tuple(name for name in FORMATS if name in asked)


def write_reports(
    report: Report,
    directory: Path,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    history: Sequence[PastRun] = (),
    notes: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Write ``report`` into ``directory`` and return what was written, in the order of ``FORMATS``.

    ``csv`` is not written here: raw requests are kept as they are measured. Where ``GITHUB_STEP_SUMMARY`` is
    set, ``report.md`` is appended to it.

    Raises:
        OSError: A file cannot be written.
    """
    from pytest_vllmperf.adapters import html_report, prometheus_text, writers
    from pytest_vllmperf.adapters.github_actions import append_step_summary

    paths = {name: directory / file for name, file in FORMATS.items()}
    if "json" in formats:
        writers.write_json(report, paths["json"])
    if "md" in formats:
        writers.write_markdown(report, paths["md"])
        append_step_summary(paths["md"], os.environ)
    if "prom" in formats:
        prometheus_text.write_metrics(report, paths["prom"])
    if "html" in formats:
        html_report.write_html(report, paths["html"], history=history, notes=notes)
    return tuple(path for name, path in paths.items() if name in formats and path.exists())
