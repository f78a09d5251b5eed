"""The one place through which everything a run shows or writes has to pass: secrets end here.

Results go through :func:`sending.Evidence.to_builtins <pytest_vllmperf.session.Evidence.to_builtins>`, which cleans
them on their way to reports, history and journal; what pytest itself prints and writes (tracebacks, captured output,
JUnit properties) is cleaned here; progress lines by the printer of progress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_vllmperf.domain.redaction import Redactor

__all__ = ["clean_report"]


def clean_report(report: pytest.TestReport | pytest.CollectReport, redactor: Redactor) -> None:
    """Take secrets out of what pytest is going to print, write and send to its controller about one test."""
    report.sections = [(name, redactor.clean(text)) for name, text in report.sections]
    if not isinstance(report, pytest.CollectReport):
        report.user_properties = [(name, redactor.clean_all(value)) for name, value in report.user_properties]
    found = report.longrepr
    if isinstance(found, str):
        report.longrepr = redactor.clean(found)
    elif isinstance(found, tuple):  # a skip: file, line, reason
        report.longrepr = (found[0], found[1], redactor.clean(found[2]))
    elif found is not None:
        _clean_object(found, redactor, seen=set())


def _clean_object(node: Any, redactor: Redactor, *, seen: set[int]) -> None:
    """Pytest's representation of a traceback is a tree of plain objects with lists of lines: clean it in place."""
    if id(node) in seen or not hasattr(node, "__dict__"):
        return
    seen.add(id(node))
    for name, value in vars(node).items():
        object.__setattr__(node, name, _cleaned(value, redactor, seen))


def _cleaned(value: Any, redactor: Redactor, seen: set[int]) -> Any:
    if isinstance(value, str):
        return redactor.clean(value)
    if isinstance(value, list):
        return [_cleaned(item, redactor, seen) for item in value]
    if isinstance(value, tuple):
        return tuple(_cleaned(item, redactor, seen) for item in value)
    _clean_object(value, redactor, seen=seen)
    return value
