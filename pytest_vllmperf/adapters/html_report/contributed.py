"""Sections that others contributed to the report, with their plots as geometry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.adapters.html_report.estimates import ForestFigure, ScatterFigure, forest_figure, scatter_figure
from pytest_vllmperf.adapters.html_report.lines import LineFigure, line_figure
from pytest_vllmperf.domain.section import Cell, Section, Table

__all__ = ["DrawnCell", "DrawnSection", "DrawnTable", "drawn_section"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnCell:
    """A table's cell: ``target`` is the id of the measurement it leads to, empty without one."""

    text: str
    value: float | None
    kind: str
    target: str
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnTable:
    """A table, each head with whether its column is right-aligned."""

    title: str
    note: str
    head: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[DrawnCell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSection:
    """A section as the template shows it."""

    id: str
    section: Section
    tables: tuple[DrawnTable, ...]
    forests: tuple[ForestFigure, ...]
    scatters: tuple[ScatterFigure, ...]
    lines: tuple[LineFigure, ...]


def drawn_section(section: Section, targets: Mapping[tuple[str, str], str]) -> DrawnSection:
    """``section`` with every plot as geometry; ``targets`` maps engine and workload to a measurement's id."""
    return DrawnSection(
        id="s-" + re.sub(r"[^A-Za-z0-9-]+", "-", section.id),
        section=section,
        tables=tuple(_table(table, targets) for table in section.tables),
        forests=tuple(forest_figure(forest) for forest in section.forests if forest.rows),
        scatters=tuple(f for scatter in section.scatters if (f := scatter_figure(scatter)) is not None),
        lines=tuple(drawn for plot in section.lines if (drawn := line_figure(plot)) is not None),
    )


def _table(table: Table, targets: Mapping[tuple[str, str], str]) -> DrawnTable:
    right = [name in table.right for name in table.head]
    return DrawnTable(
        title=table.title,
        note=table.note,
        head=tuple(zip(table.head, right, strict=True)),
        rows=tuple(_row(row, right, targets) for row in table.rows),
    )


def _row(
    row: Sequence[str | Cell], right: Sequence[bool], targets: Mapping[tuple[str, str], str]
) -> tuple[DrawnCell, ...]:
    cells = [Cell(text=cell) if isinstance(cell, str) else cell for cell in row]
    return tuple(
        DrawnCell(
            text=cell.text,
            value=cell.value,
            kind=cell.kind,
            target=targets.get(cell.measurement, "") if cell.measurement else "",
            right=aligned,
        )
        for cell, aligned in zip(cells, right, strict=False)
    )
