"""How each metric went in the last stored runs of the same engine, workload, model and hardware."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_vllmperf.adapters.html_report.plots import sparkline
from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.stats import reduce_samples
from pytest_vllmperf.domain.units import format_quantity

if TYPE_CHECKING:
    from pytest_vllmperf.domain.report import Report

__all__ = ["PastMetric", "PastRun", "Trend", "Trends"]


class PastMetric(Protocol):
    """One metric of an earlier run, as the history gives it: scalars, and distributions under their own name."""

    @property
    def metric(self) -> str:
        """Its name."""

    @property
    def engine(self) -> str:
        """The engine it was measured on."""

    @property
    def workload(self) -> str:
        """The workload it was measured with."""

    @property
    def samples(self) -> Sequence[float]:
        """Its samples, in its base unit."""

    @property
    def extra_info(self) -> Mapping[str, object]:
        """What was stored with it: ``hardware``, ``model``, ``invalid``."""


class PastRun(Protocol):
    """One earlier run."""

    @property
    def datetime(self) -> str:
        """When, as ISO 8601."""

    @property
    def metrics(self) -> Sequence[PastMetric]:
        """Everything measured in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A sparkline of earlier values and the one of this run.

    ``change`` is against the latest earlier value, as a ratio; None where that value is zero.
    """

    points: str
    last_x: int
    last_y: int
    change: float | None
    change_text: str
    text: str


class Trends:
    """Looks up earlier values; statistics are computed only for what is asked."""

    def __init__(self, report: Report, history: Sequence[PastRun]) -> None:
        self._hardware = report.environment.hardware
        self._models = {(s.engine, s.workload): s.model for s in report.summaries}
        self._past: dict[tuple[str, str, str], list[tuple[str, Sequence[float]]]] = defaultdict(list)
        for run in history:
            for past in run.metrics:
                if self._comparable(past):
                    self._past[past.engine, past.workload, past.metric].append((run.datetime, past.samples))
        self.runs = len(history)

    def _comparable(self, past: PastMetric) -> bool:
        """True for a sound measurement of the same engine, workload and model on the same hardware."""
        info = past.extra_info
        model = self._models.get((past.engine, past.workload))
        return (
            model is not None
            and not info.get("invalid")
            and info.get("hardware") == self._hardware
            and info.get("model") == model
        )

    def values(self, engine: str, workload: str, name: str) -> list[tuple[str, float]]:
        """Date and value of every earlier run that has one, oldest first."""
        entry = metric(name)
        past = self._past.get((engine, workload, entry.family or name), [])
        reduced = ((when, reduce_samples(samples, entry.statistic or "mean")) for when, samples in past)
        return [(when, value) for when, value in reduced if value is not None]

    def of(self, engine: str, workload: str, name: str, *, now: float | None) -> Trend | None:
        """The trend that ends with ``now``; None without an earlier value, or without one now."""
        entry = metric(name)
        known = self.values(engine, workload, name)
        if now is None or not known:
            return None
        values = [value for _, value in known]
        points, x, y = sparkline([*values, now])
        change = now / values[-1] - 1 if values[-1] else None
        low, high = (format_quantity(edge, unit=entry.unit) for edge in (min(values), max(values)))
        count = f"{len(values)} earlier run{'s' if len(values) > 1 else ''}"
        return Trend(
            points=points,
            last_x=x,
            last_y=y,
            change=change,
            change_text="" if change is None else f"{change:+.1%}".replace("%", " %").replace("-", "−"),
            text=f"{count} since {known[0][0][:16]}: {low} to {high}, then {format_quantity(now, unit=entry.unit)}",
        )
