"""A part of the report that somebody else contributes: sentences, tables and the data of its plots.

Whoever computes something worth showing (a comparison, an attribution, a capacity search, a trend) returns a
:class:`Section`; how it looks is the writers' business. Tables go to the page and to Markdown, plots to the page,
everything to ``report.json``. Two ways lead into the report: ``evidence.sections[section.id] = section`` from inside a
test (it rides on the test's report, through xdist as well), and the hook ``pytest_vllmperf_sections`` for what is
computed from the finished run.

Numbers are in the catalogue's base units, with the unit named: the writers format them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Union

__all__ = [
    "Band",
    "Cell",
    "Forest",
    "ForestRow",
    "Line",
    "LinePlot",
    "Marker",
    "Point",
    "Scatter",
    "Section",
    "Table",
    "section_id",
]

Kind = Literal["", "pass", "fail", "invalid", "inconclusive", "shown", "better", "worse"]
"""What a colour means; the empty one means nothing."""
Direction = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A table's cell that is more than its text.

    ``value`` is what the column sorts by; ``measurement`` is the engine and workload whose evidence it leads to.
    """

    text: str
    value: float | None = None
    kind: Kind = ""
    measurement: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under a head, each as long as it; ``right`` names the right-aligned columns. ``note`` stands below."""

    head: tuple[str, ...]
    rows: tuple[tuple[Union[str, Cell], ...], ...]
    right: tuple[str, ...] = ()
    title: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestRow:
    """An estimate with its interval; ``text`` is shown at the right edge, such as a verdict."""

    label: str
    estimate: float
    low: float
    high: float
    kind: Kind = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Estimates under each other over one axis.

    Args:
        title: What the axis shows.
        rows: From top to bottom.
        unit: Of estimates and intervals; ``ratio`` is shown in percent.
        reference: Where "no change" stands: 0 for a relative change, 1 for a ratio.
        tolerance: Half the width of the band around ``reference`` that counts as no change, if any.
    """

    title: str
    rows: tuple[ForestRow, ...]
    unit: str = "ratio"
    reference: float = 0.0
    tolerance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One labelled point; ``front`` is True where no other point is better in everything."""

    label: str
    x: float
    y: float
    front: bool = False
    kind: Kind = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Points in a plane, such as throughput against TTFT; those of the front are joined.

    ``better`` says in which direction each axis gets better.
    """

    x_label: str
    y_label: str
    x_unit: str
    y_unit: str
    points: tuple[Point, ...]
    x_better: Direction = "neither"
    y_better: Direction = "neither"
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Values over places, in order of ``x``; a value of None leaves a gap.

    ``steps`` draws each value until the next place, as for bins. ``low`` and ``high`` bound a shaded interval.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    steps: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """A line across the plot: at an ``x`` (a change point, a knee) or at a ``y`` (a limit, a ceiling)."""

    text: str
    x: float | None = None
    y: float | None = None
    kind: Kind = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A shaded stretch of the horizontal axis, such as the steady window."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePlot:
    """Lines over one horizontal axis.

    ``x_names``, where given, are the texts of whole-numbered places (runs, dates) and replace the axis's numbers.
    """

    title: str
    lines: tuple[Line, ...]
    y_unit: str
    x_unit: str = "s"
    x_label: str = ""
    y_label: str = ""
    markers: tuple[Marker, ...] = ()
    bands: tuple[Band, ...] = ()
    x_names: tuple[str, ...] = ()
    from_zero: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the report.

    Args:
        id: Unique in a report, of letters, digits and hyphens: the page's anchor, and how a later one replaces it.
        title: A noun phrase.
        sentences: The findings in words, the plain sentence first; also printed on the terminal.
        tables, forests, scatters, lines: What supports them.
        notes: How to read it, and what it does not say.
        kind: Colours the sentences: the worst outcome inside.
    """

    id: str
    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    forests: tuple[Forest, ...] = ()
    scatters: tuple[Scatter, ...] = ()
    lines: tuple[LinePlot, ...] = ()
    notes: tuple[str, ...] = ()
    kind: Kind = ""


def section_id(kind: str, *names: str) -> str:
    """The ``id`` of a section about ``names``, such as ``comparison-a-b``: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9-]", "-", "-".join((kind, *names)))
