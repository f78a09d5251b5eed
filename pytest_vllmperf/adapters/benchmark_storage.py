"""Where pytest-benchmark keeps runs, and what it compares with: by hardware, one writer at a time.

It decides both while it is configured, when nobody may look for a GPU yet; so its session is corrected afterwards.
"""

from __future__ import annotations

import fcntl
import re
from pathlib import Path
from typing import Any

__all__ = ["postpone_comparison", "resume_comparison", "store_by_hardware"]


def postpone_comparison(config: Any) -> str | bool | None:
    """Take ``--benchmark-compare`` away before pytest-benchmark acts on it, and return what it was given.

    Call it in a ``pytest_configure`` that is not trylast. What to compare with depends on the hardware, which
    is not looked at before tests are collected; :func:`resume_comparison` gives it back.
    """
    given: str | bool | None = getattr(config.option, "benchmark_compare", None)
    if given:
        config.option.benchmark_compare = None
    return given


def resume_comparison(config: Any, given: str | bool | None) -> None:
    """Load what ``--benchmark-compare`` asked for, from where :func:`store_by_hardware` points by now."""
    session = getattr(config, "_benchmarksession", None)
    if given and session is not None and not session.compare:
        config.option.benchmark_compare = session.compare = given
        session.handle_loading()


def store_by_hardware(config: Any, hardware: str) -> None:
    """Keep this run in a folder named after the hardware; two runs that end at once save one after the other.

    pytest-benchmark's own folders tell operating systems and Python versions apart, but no GPUs.
    """
    session = getattr(config, "_benchmarksession", None)
    if session is None or not isinstance(getattr(session.storage, "path", None), Path):
        return  # a server such as Elasticsearch keeps machines apart, and writers too
    session.machine_id = session.storage.default_machine_id = re.sub(r"[^A-Za-z0-9_.-]+", "-", hardware).strip("-.")
    save = session.storage.save

    def save_alone(output_json: Any, name: str) -> None:
        with (session.storage.path / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the next free number is looked up inside
            save(output_json, name)

    session.storage.save = save_alone
