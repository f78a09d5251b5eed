"""Which configuration for which use, as a part of the report: rules answered, and the front nothing else beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_vllmperf.domain.choice import DEFAULT_RULES, Choice, Rule, choose
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.pareto import pareto_front
from pytest_vllmperf.domain.section import Cell, Section, Table
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["choice_sections"]

_FEWEST = 2
_AXES = ("output_throughput", "ttft_mean", "device_memory_peak", "host_memory_peak", "accuracy")
"""What the front is over, as far as every engine has it; host memory only where there is no device memory."""


def choice_sections(engines: Sequence[str], summaries: Sequence[Summary], rules: Sequence[Rule]) -> tuple[Section, ...]:
    """The table of uses and the Pareto front of each workload; nothing where fewer than two engines were measured.

    Args:
        engines: The engines of the run, in the order of the matrix; those an experiment made up are not choices.
        summaries: Everything measured; what is INVALID counts as not measured.
        rules: The file's; without any, the built-in ones. Those whose metric nobody has in this run are left out.
    """
    measured = {name: _values(name, summaries) for name in engines}
    measured = {name: values for name, values in measured.items() if values}
    if len(measured) < _FEWEST:
        return ()
    have = {key for values in measured.values() for key in values}
    asked = [
        rule
        for rule, least in [(r, 1) for r in rules] or [(r, _FEWEST) for r in DEFAULT_RULES]
        if sum((rule.workload, rule.best) in values for values in measured.values()) >= least
    ]
    choices = [choose(rule, measured) for rule in asked]
    workloads = dict.fromkeys(s.workload for s in summaries if (s.workload, _AXES[0]) in have)
    fronts = [table for name in workloads if (table := _front(name, measured)) is not None]
    if not choices and not fronts:
        return ()
    return (
        Section(
            id="choice",
            title="Which configuration for which use",
            sentences=tuple(choice.sentence for choice in choices),
            tables=(*([_uses(choices, list(measured))] if choices else []), *fronts),
            notes=(
                (
                    "One launch each, unless more were asked for: engines within the tolerance of the best are told as "
                    "equally good, and may change places in the next run."
                ),
                (
                    "On the front: no other engine is at least as good in every column and better in one by more than "
                    "that metric's tolerance."
                ),
            ),
        ),
    )


def _values(engine: str, summaries: Sequence[Summary]) -> dict[tuple[str, str], float]:
    return {
        (summary.workload, name): value.value
        for summary in summaries
        if summary.engine == engine and not summary.invalid
        for name, value in summary.metrics.items()
        if value.value is not None
    }


def _uses(choices: Sequence[Choice], engines: Sequence[str]) -> Table:
    rows = []
    for choice in choices:
        rule, entry = choice.rule, metric(choice.rule.best)
        needs = ", ".join(f"{metric(n.metric).label}{_of(n.workload)} {n.text}" for n in rule.requires)
        left_out = "; ".join(f"{name}: {why}" for name, why in choice.left_out.items())
        best = f"{entry.label} of {rule.workload}"
        value = format_quantity(choice.value, unit=entry.unit)
        rows.append(
            (
                rule.use,
                Cell(text=choice.engine, kind="better") if choice.engine else "none",
                Cell(text=value, value=choice.value, measurement=_place(choice)),
                ", ".join(choice.equal),
                best,
                needs,
                left_out,
            )
        )
    head = ("use", "configuration", "value", "as good", "best", "required", "left out")
    return Table(title="Uses", head=head, rows=tuple(rows), right=("value",), note=f"Of {', '.join(engines)}.")


def _of(workload: str | None) -> str:
    return f" of {workload}" if workload else ""


def _place(choice: Choice) -> tuple[str, str] | None:
    return (choice.engine, choice.rule.workload) if choice.engine else None


def _front(workload: str, measured: Mapping[str, Mapping[tuple[str, str], float]]) -> Table | None:
    """The engines measured on ``workload``, those on the front marked; None for fewer than two."""
    here = {name: values for name, values in measured.items() if (workload, _AXES[0]) in values}
    if len(here) < _FEWEST:
        return None
    axes = [(workload, name) for name in _AXES if name != "accuracy"]
    axes += sorted({key for values in here.values() for key in values if key[1] == "accuracy"})
    axes = [axis for axis in axes if all(axis in values for values in here.values())]
    if any(name == "device_memory_peak" for _, name in axes):
        axes = [axis for axis in axes if axis[1] != "host_memory_peak"]
    entries = [metric(name) for _, name in axes]
    rows = {name: [values[axis] for axis in axes] for name, values in here.items()}
    front = pareto_front(rows, [e.better for e in entries], margin=[e.tolerance for e in entries])
    head = (
        "engine",
        *(e.label + (f" of {of}" if e.name == "accuracy" else "") for e, (of, _) in zip(entries, axes, strict=True)),
        "",
    )
    table = tuple(
        (
            name,
            *(
                Cell(text=format_quantity(value, unit=e.unit), value=value, measurement=(name, of))
                for value, e, (of, _) in zip(row, entries, axes, strict=True)
            ),
            "on the front" if name in front else "beaten",
        )
        for name, row in rows.items()
    )
    return Table(title=f"Pareto front: {workload}", head=head, rows=table, right=head[1:-1])
