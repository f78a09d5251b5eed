"""What tests measured and judged, on its way from the process that ran them to the controller.

Each test's :class:`Evidence` rides on its report as plain JSON types, so that one process and many workers go the
same way. :class:`Sender` leaves out what went before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_vllmperf.domain.environment import Environment
    from pytest_vllmperf.domain.report import EngineReport
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Verdict

__all__ = ["Evidence", "Sender", "builtins_only", "junit_properties"]


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What one test (or several, on the controller) measured, judged and launched, and its sections of the report."""

    summaries: dict[tuple[str, str, str], Summary] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    engines: dict[str, EngineReport] = field(default_factory=dict)
    sections: dict[str, Section] = field(default_factory=dict)
    places: dict[str, Environment] = field(default_factory=dict)
    """Where each engine ran: with workers on other machines not where the run is concluded."""

    def add(self, other: Evidence) -> None:
        """Take over everything of ``other``; a later judgement of the same value replaces the earlier."""
        self.summaries.update(other.summaries)
        self.engines.update(other.engines)
        self.sections.update(other.sections)
        self.places.update(other.places)
        merged = {_judged(v): v for v in (*self.verdicts, *other.verdicts)}
        self.verdicts = list(merged.values())

    @property
    def is_empty(self) -> bool:
        """True where nothing was measured, judged, launched or written."""
        return not (self.summaries or self.verdicts or self.engines or self.sections)

    def add_summary(self, summary: Summary) -> None:
        """Take over one measurement; a later one of the same thing replaces the earlier."""
        self.summaries[summary.engine, summary.workload, summary.experiment] = summary

    def to_builtins(self) -> dict[str, Any]:
        """Plain JSON types only: anything else breaks the way from a worker to the controller silently."""
        plain: dict[str, Any] = builtins_only(
            {
                "summaries": list(self.summaries.values()),
                "verdicts": self.verdicts,
                "engines": list(self.engines.values()),
                "sections": list(self.sections.values()),
                "places": self.places,
            }
        )
        return plain

    @classmethod
    def from_builtins(cls, plain: Mapping[str, Any]) -> Evidence:
        """The reverse of :meth:`to_builtins`."""
        import msgspec

        from pytest_vllmperf.domain.environment import Environment
        from pytest_vllmperf.domain.report import EngineReport
        from pytest_vllmperf.domain.section import Section
        from pytest_vllmperf.domain.summary import Summary
        from pytest_vllmperf.domain.thresholds import Verdict

        summaries = msgspec.convert(plain["summaries"], list[Summary])
        engines = msgspec.convert(plain["engines"], list[EngineReport])
        return cls(
            summaries={(s.engine, s.workload, s.experiment): s for s in summaries},
            verdicts=msgspec.convert(plain["verdicts"], list[Verdict]),
            engines={e.name: e for e in engines},
            sections={s.id: s for s in msgspec.convert(plain["sections"], list[Section])},
            places=msgspec.convert(plain["places"], dict[str, Environment]),
        )


class Sender:
    """Knows what this process sent: tests share measurements and engines, and one measurement holds every sample.

    Sending all with each test would cost more than the test, and so would writing it down three times for each.
    """

    def __init__(self) -> None:
        self._summaries: dict[tuple[str, str, str], Summary] = {}
        self._engines: dict[str, tuple[EngineReport, Environment | None]] = {}
        self._verdicts: dict[tuple[object, ...], Verdict] = {}
        self._sections: dict[str, Section] = {}

    def news(self, evidence: Evidence) -> Evidence:
        """``evidence`` without what was sent before, in this form."""
        engines = {name: (report, evidence.places.get(name)) for name, report in evidence.engines.items()}
        fresh = {name: both for name, both in engines.items() if self._engines.get(name) != both}
        verdicts = {_judged(verdict): verdict for verdict in evidence.verdicts}
        new = Evidence(
            summaries={k: s for k, s in evidence.summaries.items() if self._summaries.get(k) is not s},
            verdicts=[verdict for key, verdict in verdicts.items() if self._verdicts.get(key) != verdict],
            engines={name: report for name, (report, _) in fresh.items()},
            sections={k: s for k, s in evidence.sections.items() if self._sections.get(k) != s},
            places={name: place for name, (_, place) in fresh.items() if place is not None},
        )
        self._summaries.update(new.summaries)
        self._engines.update(fresh)
        self._verdicts.update((_judged(verdict), verdict) for verdict in new.verdicts)
        self._sections.update(new.sections)
        return new


def _judged(verdict: Verdict) -> tuple[object, ...]:
    return verdict.engine, verdict.against, verdict.workload, verdict.metric


def junit_properties(evidence: Evidence) -> list[tuple[str, object]]:
    """Properties for JUnit's XML: every value a test measured, named as in history, and every outcome."""
    from pytest_vllmperf.domain.metrics import metric

    values: list[tuple[str, object]] = [
        (f"{s.engine}/{s.workload}::{v.name} [{metric(v.name).unit}]", v.value)
        for s in evidence.summaries.values()
        for v in s.metrics.values()
        if v.value is not None
    ]
    return values + [(f"{v.engine}/{v.workload}::{v.metric} verdict", str(v.outcome)) for v in evidence.verdicts]


def builtins_only(value: Any) -> Any:
    """``value`` in the exact builtin types JSON knows; NaN and infinities stay what they are.

    pytest-xdist dispatches on exact types: one ``numpy.float64`` in a report ends a worker with an internal error.
    """
    import msgspec

    from pytest_vllmperf.domain.report import builtin

    return json.loads(json.dumps(msgspec.to_builtins(value, enc_hook=builtin, str_keys=True)))
