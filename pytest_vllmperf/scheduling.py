"""Which worker runs which test: all tests of an engine on one worker. The only importer of xdist's schedulers.

``--dist loadgroup`` would say the same in fewer words, but groups nothing on pytest 9.2 with pytest-xdist 3.8.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

__all__ = ["comparison_in", "engine_in", "make_scheduler"]


def engine_in(nodeid: str, engines: Collection[str]) -> str | None:
    """The engine a node id speaks of, None for a test without one.

    The controller of pytest-xdist knows tests by their ids only. The engine is the first parameter unless a
    plugin put another before it; of names that both fit (``fp8`` and ``fp8-kv`` in ``[fp8-kv-burst]``) the
    longest is taken. Whoever runs the test compares with what the test really asks for.
    """
    parameters = nodeid.partition("::")[2].partition("[")[2]
    between = f"-{parameters[:-1]}-"
    fitting = [name for name in engines if f"-{name}-" in between]
    leading = [name for name in fitting if between.startswith(f"-{name}-")]
    return max(leading or fitting, key=len, default=None)


def comparison_in(nodeid: str, engines: Collection[str]) -> str | None:
    """The comparison ``BASE:CANDIDATE`` a node id speaks of, None for any other test. It owns its launches."""
    parameters = nodeid.partition("::")[2].partition("[")[2]
    between = f"-{parameters[:-1]}-"
    return next((f"{a}:{b}" for a in engines for b in engines if f"-{a}:{b}-" in between), None)


def make_scheduler(config: pytest.Config, log: Any, engines: Collection[str]) -> LoadScopeScheduling:
    """A scheduler that hands out whole engines, the one with most tests first.

    Tests without an engine go before all of them, one by one. The test that took a worker down counts as
    done: it is reported once and never run again, while the rest of its engine's tests go to another worker.
    """
    from xdist.scheduler import LoadScopeScheduling

    class EngineScheduling(LoadScopeScheduling):  # type: ignore[misc] # pytest-xdist has no types for others
        workqueue: OrderedDict[str, dict[str, bool]]
        ordered = False

        def _split_scope(self, nodeid: str) -> str:
            comparison, engine = comparison_in(nodeid, engines), engine_in(nodeid, engines)
            if comparison is not None:
                return f"{_COMPARISON}{comparison}"
            return nodeid if engine is None else f"{_ENGINE}{engine}"

        def _assign_work_unit(self, node: WorkerController) -> None:
            if not self.ordered:
                self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=_urgency))
                self.ordered = True
            super()._assign_work_unit(node)

        def _reschedule(self, node: WorkerController) -> None:
            """As inherited, with the least look-ahead: a worker starts its last test when it knows the next."""
            if node.shutting_down:
                return
            if not self.workqueue:
                node.shutdown()
            elif self._pending_of(self.assigned_work[node]) <= 1:
                self._assign_work_unit(node)

        def remove_node(self, node: WorkerController) -> str | None:
            """As inherited, except that the test in flight is not queued again: it would crash every worker."""
            workload: dict[str, dict[str, bool]] = self.assigned_work.pop(node)
            pending = [(unit, nodeid) for unit in workload.values() for nodeid, done in unit.items() if not done]
            if not pending:
                return None
            unit, crashed = pending[0]
            unit[crashed] = True
            self.workqueue.update({scope: unit for scope, unit in workload.items() if not all(unit.values())})
            self.ordered = False
            for other in self.assigned_work:
                self._reschedule(other)
            return crashed

    return EngineScheduling(config, log)


_ENGINE = "engine "
_COMPARISON = "comparison "


def _urgency(unit: tuple[str, dict[str, bool]]) -> tuple[int, int]:
    """Tests without an engine first: afterwards they would hold one idle. Then comparisons, which launch themselves.

    Then single engines; among equals by tests still to be run.
    """
    scope, tests = unit
    return scope.startswith(_COMPARISON) + 2 * scope.startswith(_ENGINE), -list(tests.values()).count(False)
