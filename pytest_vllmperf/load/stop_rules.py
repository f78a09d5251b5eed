"""When a run need not go on: enough is known, or too much has failed."""

from __future__ import annotations

from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.plan import Stop

__all__ = ["StopRules"]

_EVERY = 8
"""Samples between two looks: a look costs half a millisecond."""


class StopRules:
    """Looks at what all load processes together have told, and orders a stop at most once."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._samples: list[float] = []
        self._looked_at = 0
        self._ordered = False

    def look(self, *, failed: int, samples: tuple[float, ...]) -> Stop | None:
        """The order to give now, if any.

        Args:
            failed: Requests known to have failed.
            samples: What is new of the latency ``until`` asks about.
        """
        self._samples += samples
        if self._ordered:
            return None
        order = self._hopeless(failed) or self._precise()
        self._ordered = order is not None
        return order

    def _hopeless(self, failed: int) -> Stop | None:
        """More have failed than the whole run may have: it cannot become sound any more."""
        workload = self._workload
        if failed <= workload.max_error_rate * workload.requests:
            return None
        reason = (
            f"{failed} requests had failed, and max_error_rate={workload.max_error_rate:g} allows "
            f"{int(workload.max_error_rate * workload.requests)} of {workload.requests}"
        )
        return Stop(reason=reason, abandon=True)

    def _precise(self) -> Stop | None:
        until, count = self._workload.until, len(self._samples)
        if until is None or count < max(until.minimum_requests, self._looked_at + _EVERY):
            return None
        from pytest_vllmperf.domain.stats import relative_half_width

        self._looked_at = count
        width = relative_half_width(self._samples)
        if width is None or width > until.within:
            return None
        reason = f"{until.metric} is known within {width:.1%} after {count} requests ({until.within:.1%} were asked)"
        return Stop(reason=reason, abandon=False)
