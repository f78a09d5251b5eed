"""One metric over stored runs: which of them are comparable, and what has changed between them.

Two keys belong to each value. Its *conditions* (hardware, driver, host, model, workload, workers) must be equal, or
two values say nothing about each other. Its *subject* (version of vLLM, flags, commit) may differ: that is what is
compared, so that an upgrade shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pytest_vllmperf.domain.history_band import HistoryFinding, judge_history
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.trend import TrendFinding, scan_trend

__all__ = ["Point", "Series", "SeriesFinding", "Shift", "comparable", "examine", "subject_change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One stored run's value.

    Args:
        when: ISO 8601.
        value: In the metric's base unit (geometric mean of its launches); None where it has none.
        control: The control engine's value in the same run; None without one.
        conditions: What must be equal.
        subject: What is compared: ``vllm``, ``commit``, ``args``, ``env``, ``python``, ``command``.
        sound: Whether it may be compared with: a whole run that missed nothing.
    """

    when: str
    value: float | None
    control: float | None = None
    conditions: Mapping[str, str]
    subject: Mapping[str, object]
    sound: bool = True

    @property
    def date(self) -> str:
        """The day."""
        return self.when[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A shift somebody has accepted: runs before ``since`` are no longer compared with. None matches anything."""

    engine: str
    workload: str
    metric: str
    since: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Comparable points, oldest first; the last one is the latest run.

    Args:
        engine, workload, metric: What was measured.
        points: Those with the latest one's conditions, since the latest accepted shift.
        left_out: Why the others were left out, one sentence for each reason.
        control: The control engine, where every point has its value.
    """

    engine: str
    workload: str
    metric: str
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()
    control: str | None = None

    @property
    def name(self) -> str:
        """``engine/workload/metric``."""
        return f"{self.engine}/{self.workload}/{self.metric}"

    @property
    def values(self) -> tuple[float | None, ...]:
        """Ratios to the control engine where there is one, else values."""
        if self.control is None:
            return tuple(p.value for p in self.points)
        return tuple(p.value / p.control if p.value is not None and p.control else None for p in self.points)


def comparable(
    engine: str,
    workload: str,
    name: str,
    points: Sequence[Point],
    *,
    control: str | None = None,
    accepted: Sequence[Shift] = (),
) -> Series:
    """The points that can be compared with the latest one, oldest first, and why the others cannot."""
    if not points:
        return Series(engine=engine, workload=workload, metric=name, points=())
    latest, reasons = points[-1], Counter[str]()
    since = max((s.since for s in accepted if _matches(s, engine, workload, name)), default="")
    kept = []
    for point in points:
        why = _difference(point, latest)
        if why is None and since and point.when[: len(since)] < since:
            why = f"before the shift accepted for {since}"
        if why is None and not point.sound and point is not latest:
            why = "not sound: it failed, was interrupted, quick, or ran on an engine used before"
        if why is None:
            kept.append(point)
        else:
            reasons[why] += 1
    left_out = tuple(f"{n} run{'s' if n > 1 else ''} left out: {why}" for why, n in reasons.most_common())
    has_control = control is not None and all(p.control for p in kept)
    return Series(
        engine=engine,
        workload=workload,
        metric=name,
        points=tuple(kept),
        left_out=left_out,
        control=control if has_control else None,
    )


def _matches(shift: Shift, engine: str, workload: str, name: str) -> bool:
    given = (shift.engine, shift.workload, shift.metric)
    return all(a in ("*", b) for a, b in zip(given, (engine, workload, name), strict=True))


def _difference(point: Point, latest: Point) -> str | None:
    """The first condition that differs, in words."""
    if not point.conditions:
        return "nothing is known of its conditions"
    for key, now in latest.conditions.items():
        then = point.conditions.get(key, "unknown")
        if then != now:
            return f"{key} was {then}, and is {now} now"
    return None


def subject_change(before: Point, after: Point) -> str:
    """What of the subject differs between two runs, in words; empty when nothing is known to."""
    parts = []
    for key, name in (("vllm", "vLLM"), ("commit", "commit")):
        then, now = before.subject.get(key), after.subject.get(key)
        if then != now:
            parts.append(f"{name} {_short(key, then)} → {_short(key, now)}")
    parts += [
        f"{key} changed" for key in ("args", "env", "command") if before.subject.get(key) != after.subject.get(key)
    ]
    return ", ".join(parts)


_NEAR = (0, 1, -1, 2, -2)
"""Nights from a step in which a change of the subject may have made it: noise can move its place by one or two."""


def _change_near(points: Sequence[Point], place: int) -> str:
    """What changed at the step, or in the nights beside it."""
    for offset in _NEAR:
        if 0 < place + offset < len(points):
            changed = subject_change(points[place + offset - 1], points[place + offset])
            if changed:
                return changed if not offset else f"{changed} on {points[place + offset].date}"
    return ""


def _short(key: str, value: object) -> str:
    text = "unknown" if value is None else str(value)
    return text[:9] if key == "commit" else text


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFinding:
    """What a series says: of its latest run against the ones before, and of a step within the last nights.

    Args:
        series: The series.
        history: The latest run against the prediction of the others; a suspicion is no failure.
        trend: The scan for a step to a worse level.
        began: The first point at the new level; None without a step.
        changed: What differs between the subjects around that step, or, without one, between the last two runs.
    """

    series: Series
    history: HistoryFinding
    trend: TrendFinding
    began: Point | None
    changed: str

    @property
    def sentence(self) -> str:
        """The step, where there is one; else what the latest run looks like."""
        trend, label = self.trend, f"{self.series.name}"
        if trend.step is None or self.began is None:
            change = "" if self.history.change is None else f"{100 * self.history.change:+.1f} % "
            return f"{label}: {change}{self.history.reason}"
        measure = f"ratio to {self.series.control}" if self.series.control else "raw values, no control engine"
        why = f"; {self.changed}" if self.changed else "; nothing known has changed"
        return f"{label}: {100 * trend.step.change:+.1f} % since {self.began.date} ({measure}; {trend.reason}{why})"


def examine(series: Series) -> SeriesFinding:
    """Hold the latest run against the ones before, and scan for a step."""
    entry, points = metric(series.metric), series.points
    values = series.values
    before = [v for v in values[:-1] if v is not None]
    latest = values[-1] if values else None
    trend = scan_trend(values, better=entry.better)
    began = points[trend.step.since] if trend.step is not None else None
    if trend.step is not None:
        changed = _change_near(points, trend.step.since)
    else:
        changed = next((subject_change(a, b) for a, b in [*pairwise(points)][-1:]), "")
    history = judge_history(before, latest, better=entry.better)
    if history.suspicious and changed and began is None:
        history = replace(history, reason=f"{history.reason} ({changed})")
    return SeriesFinding(series=series, history=history, trend=trend, began=began, changed=changed)
