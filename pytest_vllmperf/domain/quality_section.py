"""Engines side by side, the quality of their answers and what they cost: which variant to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.pareto import pareto_front
from pytest_vllmperf.domain.section import Cell, Kind, Point, Scatter, Section, Table, section_id
from pytest_vllmperf.domain.summary import Summary
from pytest_vllmperf.domain.thresholds import Outcome, Verdict
from pytest_vllmperf.domain.units import MISSING, format_quantity

__all__ = ["quality_sections"]

_QUALITY = ("accuracy", "accuracy_change", "kl_mean", "top1_agreement", "perplexity")
_SPEED = ("output_throughput", "ttft_mean", "tpot_mean")
_MEMORY = ("device_memory_peak", "host_memory_peak")
_WORST_FIRST = (Outcome.INVALID, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS, Outcome.NOT_JUDGED)
_KINDS: Mapping[Outcome, Kind] = {
    Outcome.PASS: "pass",
    Outcome.FAIL: "fail",
    Outcome.INVALID: "invalid",
    Outcome.INCONCLUSIVE: "inconclusive",
    Outcome.NOT_JUDGED: "shown",
}
_HOW = (
    "accuracy change is on the same questions (exact McNemar test); KL and top-1 agreement are of next-token "
    "distributions on given answers against the reference's, and see changes long before a score does; perplexity is "
    "of the same texts. Each engine's speed and memory are those of one launch: compare two by "
    "--vllmperf-compare."
)


def quality_sections(summaries: Sequence[Summary], verdicts: Sequence[Verdict]) -> tuple[Section, ...]:
    """One section for each quality task that two engines or more answered, one of them against a reference."""
    by_task: dict[str, dict[str, Summary]] = {}
    for summary in summaries:
        if summary.kind == "quality":
            by_task.setdefault(summary.workload, {})[summary.engine] = summary
    return tuple(
        _section(task, engines, summaries, verdicts)
        for task, engines in by_task.items()
        if len(engines) > 1 and any("reference" in s.facts for s in engines.values())
    )


def _section(
    task: str, engines: Mapping[str, Summary], summaries: Sequence[Summary], verdicts: Sequence[Verdict]
) -> Section:
    load = _common_load(engines, summaries)
    outcomes = {engine: _worst(engine, task, verdicts) for engine in engines}
    measured = [m for m in (*_SPEED, *_MEMORY) if any(_value(s, m) is not None for s in load.values())]
    quality = [m for m in _QUALITY if any(m in s.metrics for s in engines.values())]
    workload = next((s.workload for s in load.values()), None)
    head = ("engine", *(metric(m).label for m in (*quality, *measured)), "quality")
    rows: tuple[tuple[str | Cell, ...], ...] = tuple(
        (
            engine,
            *(_cell(summary, name, verdicts) for name in quality),
            *(_cell(load.get(engine), name, verdicts) for name in measured),
            Cell(text=str(outcomes[engine]), kind=_KINDS[outcomes[engine]], measurement=(engine, task)),
        )
        for engine, summary in engines.items()
    )
    return Section(
        id=section_id("quality", task),
        title=f"Which variant: {task}",
        sentences=_sentences(engines, load, outcomes),
        tables=(
            Table(head=head, rows=rows, right=head[1:-1], note=f"Speed and memory: {workload}." if workload else ""),
        ),
        scatters=_scatters(engines, load, outcomes),
        notes=(_HOW,),
        kind=_KINDS[min(outcomes.values(), key=_WORST_FIRST.index)],
    )


def _common_load(engines: Mapping[str, Summary], summaries: Sequence[Summary]) -> dict[str, Summary]:
    """The load measurements of one workload that most of the engines have, the largest of these workloads."""
    found: dict[str, dict[str, Summary]] = {}
    for summary in summaries:
        if summary.kind == "load" and summary.engine in engines and not summary.invalid:
            found.setdefault(summary.workload, {})[summary.engine] = summary
    return max(found.values(), key=lambda by: (len(by), max(s.requests for s in by.values())), default={})


def _worst(engine: str, task: str, verdicts: Sequence[Verdict]) -> Outcome:
    own = [v.outcome for v in verdicts if (v.engine, v.workload, v.against) == (engine, task, None)]
    return min(own, key=_WORST_FIRST.index, default=Outcome.NOT_JUDGED)


def _value(summary: Summary | None, name: str) -> float | None:
    measured = summary.metrics.get(name) if summary is not None else None
    return measured.value if measured is not None else None


def _cell(summary: Summary | None, name: str, verdicts: Sequence[Verdict]) -> Cell:
    value = _value(summary, name)
    if summary is None or value is None:
        return Cell(text=MISSING)
    text = format_quantity(value, unit=metric(name).unit)
    if name == "accuracy_change":
        text = f"{100 * value:+.1f} points"
        told = summary.facts.get("reference")
        if isinstance(told, Mapping):
            text += f" ({told.get('lost')} lost, {told.get('gained')} gained)"
    bounds = next(
        (v.interval for v in verdicts if (v.engine, v.workload, v.metric) == (summary.engine, summary.workload, name)),
        None,
    )
    if bounds is not None and bounds.low is not None and bounds.high is not None:
        unit = metric(name).unit
        text += f" [{format_quantity(bounds.low, unit=unit)}, {format_quantity(bounds.high, unit=unit)}]"
    return Cell(text=text, value=value, measurement=(summary.engine, summary.workload))


def _sentences(
    engines: Mapping[str, Summary], load: Mapping[str, Summary], outcomes: Mapping[str, Outcome]
) -> tuple[str, ...]:
    """What to take, and what not to take."""
    sentences = []
    sound = [e for e in engines if outcomes[e] not in (Outcome.FAIL, Outcome.INVALID)]
    failed = [e for e in engines if outcomes[e] is Outcome.FAIL]
    invalid = [e for e in engines if outcomes[e] is Outcome.INVALID]
    if sound:
        told = f"{_listed(sound)} keep{'s' if len(sound) == 1 else ''} the quality asked for"
        best = [_best(sound, load, name, what) for name, what in _WHAT]
        told += "".join(f"; {one}" for one in best if one)
        sentences.append(f"{told}.")
    if failed:
        sentences.append(f"{_listed(failed)} do{'es' if len(failed) == 1 else ''} not.")
    if invalid:
        sentences.append(f"Of {_listed(invalid)} nothing can be said: the evaluation is INVALID.")
    return tuple(sentences)


_WHAT = (
    ("output_throughput", "the highest throughput"),
    ("device_memory_peak", "the smallest device memory"),
    ("host_memory_peak", "the smallest host memory"),
)


def _best(sound: Sequence[str], load: Mapping[str, Summary], name: str, what: str) -> str | None:
    values = {e: value for e in sound if (value := _value(load.get(e), name)) is not None}
    if len(values) < 2:
        return None
    choose = max if metric(name).better.value == "higher" else min
    best = choose(values, key=values.__getitem__)
    return f"{what} of these has {best} ({format_quantity(values[best], unit=metric(name).unit)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _scatters(
    engines: Mapping[str, Summary], load: Mapping[str, Summary], outcomes: Mapping[str, Outcome]
) -> tuple[Scatter, ...]:
    """Accuracy over throughput, with the front of what nothing beats in both."""
    x, y = metric("output_throughput"), metric("accuracy")
    values = {e: (_value(load.get(e), x.name), _value(s, y.name)) for e, s in engines.items()}
    front = pareto_front(values, (x.better, y.better))
    points = tuple(
        Point(label=e, x=a, y=b, front=e in front, kind=_KINDS[outcomes[e]])
        for e, (a, b) in values.items()
        if a is not None and b is not None
    )
    if len(points) < 2:
        return ()
    scatter = Scatter(
        x_label=x.label,
        y_label=y.label,
        x_unit=x.unit,
        y_unit=y.unit,
        points=points,
        x_better=x.better.value,
        y_better=y.better.value,
        title="accuracy and throughput",
    )
    return (scatter,)
