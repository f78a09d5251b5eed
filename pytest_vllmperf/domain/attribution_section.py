"""An attribution as a part of the report: sentences, a table and a forest plot for each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_vllmperf.domain.attribution import Attribution, Change, FactorEffect, MetricAttribution
from pytest_vllmperf.domain.factors import Factor
from pytest_vllmperf.domain.metrics import Better, metric
from pytest_vllmperf.domain.section import Cell, Forest, ForestRow, Kind, Section, Table, section_id

__all__ = ["attribution_section"]


def attribution_section(
    name: str,
    result: Attribution,
    *,
    factors: Sequence[Factor],
    launches: Sequence[tuple[str, str, Mapping[str, str]]],
    warnings: Sequence[str] = (),
) -> Section:
    """What is shown of the attribution ``name`` (``base:candidate``).

    Args:
        name: Of the two engines.
        result: The effects.
        factors: What differs.
        launches: Each launch that counts: its round, its engine, and its values as text, by metric.
        warnings: What the plan ran into.
    """
    base, _, candidate = name.partition(":")
    tables = [_effects(result), _what_differs(factors)]
    if interactions := _interactions(result):
        tables.insert(1, interactions)
    if launches:
        columns = list(dict.fromkeys(column for _, _, values in launches for column in values))
        rows = tuple((number, engine, *(values.get(c, "–") for c in columns)) for number, engine, values in launches)
        tables.append(Table(title="Launches", head=("round", "engine", *columns), rows=rows, right=tuple(columns)))
    missing = [f"{metric_} of {workload}: {why}" for (workload, metric_), why in result.missing.items()]
    return Section(
        id=section_id("attribution", base, candidate),
        title=f"What makes {candidate} differ from {base}",
        sentences=tuple(m.sentence for m in result.metrics),
        tables=tuple(tables),
        forests=tuple(_forest(m) for m in result.metrics if m.total.relative),
        notes=(*_HOW_TO_READ, *warnings, *missing),
    )


_HOW_TO_READ = (
    (
        "An effect is the average of what a setting does to the base and to the candidate (in a fractional factorial: "
        "to all combinations). Effects multiply to the whole change; intervals are 95 % each, from launches in random "
        "order, blocked by round."
    ),
    (
        "“effect” is claimed with at most 5 % error over all settings and metrics together (Holm); “no effect” means "
        "shown to lie within the tolerance; “unclear” is neither."
    ),
)


def _kind(effect: FactorEffect, name: str) -> Kind:
    better = metric(name).better
    if effect.status != "effect" or effect.change is None or better is Better.NEITHER:
        return ""
    return "better" if (effect.change.value > 0) == (better is Better.HIGHER) else "worse"


def _effects(result: Attribution) -> Table:
    rows = []
    for found in result.metrics:
        where = (found.workload, metric(found.metric).label)
        rows.append((*where, "everything", Cell(text=found.total.text, value=found.total.value), "", "", ""))
        rows += [
            (
                *where,
                effect.factor,
                Cell(
                    text=_text(effect.change),
                    value=None if effect.change is None else effect.change.value,
                    kind=_kind(effect, found.metric),
                ),
                effect.status,
                _text(effect.at_base),
                _text(effect.at_candidate),
            )
            for effect in found.factors
        ]
    return Table(
        title="Effects",
        head=("workload", "metric", "setting", "effect", "", "on the base", "on the candidate"),
        rows=tuple(rows),
        right=("effect", "on the base", "on the candidate"),
    )


def _interactions(result: Attribution) -> Table | None:
    rows = tuple(
        (
            found.workload,
            metric(found.metric).label,
            " with ".join(one.factors),
            Cell(text=one.change.text, value=one.change.value),
            ", ".join(" with ".join(pair) for pair in one.aliases),
        )
        for found in result.metrics
        for one in found.interactions
    )
    head = ("workload", "metric", "settings", "together, beyond each alone", "or")
    return Table(title="Interactions", head=head, rows=rows) if rows else None


def _what_differs(factors: Sequence[Factor]) -> Table:
    rows = tuple((factor.name, factor.text) for factor in factors)
    return Table(title="What differs", head=("setting", "from base to candidate"), rows=rows)


def _forest(found: MetricAttribution) -> Forest:
    rows = [ForestRow(label="everything", estimate=found.total.value, low=found.total.low, high=found.total.high)]
    rows += [
        ForestRow(
            label=effect.factor,
            estimate=effect.change.value,
            low=effect.change.low,
            high=effect.change.high,
            kind=_kind(effect, found.metric),
            text=effect.status,
        )
        for effect in found.factors
        if effect.change is not None
    ]
    return Forest(
        title=f"{metric(found.metric).label}, {found.workload}", rows=tuple(rows), tolerance=found.tolerance or None
    )


def _text(change: Change | None) -> str:
    return "–" if change is None else change.text
