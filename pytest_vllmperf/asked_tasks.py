"""Which quality tasks the tests will ask, as the tests themselves tell, and what is wrong with them before a launch."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllmperf.collection import engines_of
from pytest_vllmperf.stash import SESSION

if TYPE_CHECKING:
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.errors import TaskError
    from pytest_vllmperf.session import Session

__all__ = ["check_before_launch", "named_tasks", "refuse_unavailable"]

_PROBLEMS: pytest.StashKey[dict[tuple[str, str], TaskError | None]] = pytest.StashKey()
"""What came of checking a task for a model: it is loaded once, however many tests and engines ask it."""
_ASKING = frozenset(("vllm_evaluate", "vllm_quality_task", "vllm_compare", "vllm_attribute"))
_NAMING = (ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Load)
"""Expressions that only name a thing that is there: reading them runs no test code to speak of."""


def named_tasks(item: pytest.Item, session: Session) -> list[QualityTask]:
    """The tasks a test asks for by fixture, parameter or marker, or in a call ``vllm_evaluate(NAME)`` of its body.

    A task made up inside the test is not seen; it is checked when it is asked.

    Raises:
        TaskError: A name is unknown, or an option cannot work.
    """
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS

    if _ASKING.isdisjoint(getattr(item, "fixturenames", ())):
        return []
    known = {*BUILT_IN_TASKS, *session.tasks, *session.thresholds.quality_tasks}
    marker = item.get_closest_marker("vllm_workload")
    told = (*(marker.args if marker else ()), *(item.callspec.params.values() if hasattr(item, "callspec") else ()))
    given = [task for task in told if isinstance(task, QualityTask) or (isinstance(task, str) and task in known)]
    called = [task for task in _evaluated(item) if isinstance(task, (str, QualityTask))]
    tasks = {task.name: task for task in map(session.quality_task, (*given, *called))}
    return [task for task in tasks.values() if session.selects(task.name)]


def _evaluated(item: pytest.Item) -> Iterator[Any]:
    """First arguments of calls to ``vllm_evaluate`` in a test's body, where they name something known by now."""
    function = getattr(item, "function", None)
    if function is None or "vllm_evaluate" not in getattr(item, "fixturenames", ()):
        return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return
    params = item.callspec.params if hasattr(item, "callspec") else {}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    asked = [call.args[0] for call in calls if ast.unparse(call.func) == "vllm_evaluate" and call.args]
    for expression in asked:
        if all(isinstance(part, _NAMING) for part in ast.walk(expression)):
            code = compile(ast.Expression(expression), item.nodeid, "eval")
            try:
                yield eval(code, {**inspect.unwrap(function).__globals__, **params})  # noqa: S307 - a name, no call
            except Exception:  # noqa: BLE001, S112 - a local variable; the test itself will tell what is wrong
                continue


def check_before_launch(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Check every task the tests will ask, before anything is launched.

    Data that cannot be had here is no error yet: :func:`refuse_unavailable` fails or skips the tests that need it.

    Raises:
        pytest.UsageError: A task cannot be asked: unknown, its data malformed, more questions than there are.
    """
    from pytest_vllmperf.errors import ConfigError, TaskUnavailable

    if config.option.collectonly:
        return
    session = config.stash[SESSION]
    try:
        for item in items:
            for _, problem in _problems(item, session):
                if problem is not None and not isinstance(problem, TaskUnavailable):
                    raise problem
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


def refuse_unavailable(item: pytest.Item) -> None:
    """Fail or skip a test whose task cannot be asked here, before its engine is launched."""
    from pytest_vllmperf.errors import TaskError, TaskUnavailable

    try:
        found = list(_problems(item, item.config.stash[SESSION]))
    except TaskError as error:
        pytest.fail(str(error), pytrace=False)
    for task, problem in found:
        if isinstance(problem, TaskUnavailable) and task.unavailable == "skip":
            pytest.skip(str(problem))
        if problem is not None:
            pytest.fail(str(problem), pytrace=False)


def _problems(item: pytest.Item, session: Session) -> Iterator[tuple[QualityTask, TaskError | None]]:
    """Each task of a test with what is wrong with it, for each of the test's engines that can run here."""
    from pytest_vllmperf.adapters.model_files import twin_of
    from pytest_vllmperf.errors import TaskError
    from pytest_vllmperf.evaluation import check_task
    from pytest_vllmperf.preflight import lacking

    names = [name for name in engines_of(item) if name in session.engines]
    tasks = named_tasks(item, session) if names else []
    seen = item.config.stash.setdefault(_PROBLEMS, {})
    for task in tasks:
        for engine in (session.engines[name] for name in names):
            if lacking(engine, session.environment) or twin_of(engine.model) is not None:
                continue  # its tests are skipped for that
            key = (repr(task), engine.model if "{model}" in (task.data or "") else "")
            if key not in seen:
                try:
                    check_task(engine, task, session.options.data)
                    seen[key] = None
                except TaskError as error:
                    seen[key] = error
            yield task, seen[key]
