"""How far something long has come, for people who wait: from the server's own counters, so that no client is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pytest_vllmperf.domain.records import ServerCounters
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["Status", "Telling", "load_status", "show"]

_NS = 1e-9
_ENOUGH = 3
"""Finished requests below which the rest cannot be told from them."""
_RATE_OVER_S = 2.0
"""The rate of tokens is over about so long: the server's counters move in steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One moment of something long.

    Args:
        what: Engine and workload, task or phase.
        done, planned: Requests, questions or launches; None where that cannot be told.
        unit: What is counted.
        tokens_per_s: Output tokens a second just now.
        ttft_s: Mean TTFT so far, by the server.
        elapsed_s: Since its beginning.
    """

    what: str
    done: int | None
    planned: int | None
    elapsed_s: float
    unit: str = "requests"
    tokens_per_s: float | None = None
    ttft_s: float | None = None

    @property
    def remaining_s(self) -> float | None:
        """What is left at the pace so far; None while too little is done to tell."""
        if not self.done or not self.planned or self.done < min(_ENOUGH, self.planned):
            return None
        return self.elapsed_s * max(0, self.planned - self.done) / self.done

    @property
    def figures(self) -> str:
        """The figures in one line: ``312/1000 requests, 4 811 tok/s, TTFT 210 ms``."""
        counted = f"{self.done}/{self.planned} {self.unit}" if self.done is not None and self.planned else ""
        rate = "" if self.tokens_per_s is None else format_quantity(self.tokens_per_s, unit="tok/s")
        ttft = "" if self.ttft_s is None else f"TTFT {format_quantity(self.ttft_s, unit='s')}"
        return ", ".join(part for part in (counted, rate, ttft) if part)

    @property
    def line(self) -> str:
        """Everything in one plain line."""
        left = self.remaining_s
        rest = "" if left is None else f", about {format_quantity(max(1.0, left), unit='s', digits=2)} left"
        return f"{self.what}: {self.figures or format_quantity(self.elapsed_s, unit='s', digits=2)}{rest}"


class Telling(Protocol):
    """What long work is handed to speak with."""

    def __call__(self, line: str) -> None:
        """Say something that stays."""

    def status(self, status: Status | None) -> None:
        """Show how far it is; None when it is over."""


def show(tell: object, status: Status | None) -> None:
    """Show ``status`` where ``tell`` is a :class:`Telling`: plain functions only take lines."""
    shown = getattr(tell, "status", None)
    if shown is not None:
        shown(status)


def load_status(what: str, counters: tuple[ServerCounters, ...], *, planned: int) -> Status:
    """Where a load stands, from what the server counted since its beginning; ``counters`` is oldest first."""
    first, last = counters[0], counters[-1]
    since = next((c for c in counters if (last.at_ns - c.at_ns) * _NS <= _RATE_OVER_S), first)
    since = since if since.at_ns < last.at_ns else first
    finished = _grown(first.requests_finished, last.requests_finished)
    (waited0, started0), (waited1, started1) = (c.latencies.get("ttft", (None, None)) for c in (first, last))
    waited, started = _grown(waited0, waited1), _grown(started0, started1)
    tokens, seconds = _grown(since.generation_tokens, last.generation_tokens), (last.at_ns - since.at_ns) * _NS
    return Status(
        what=what,
        done=None if finished is None else min(planned, round(finished)),
        planned=planned,
        elapsed_s=(last.at_ns - first.at_ns) * _NS,
        tokens_per_s=None if tokens is None or seconds <= 0 else tokens / seconds,
        ttft_s=waited / started if waited is not None and started else None,
    )


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or after < before else after - before
