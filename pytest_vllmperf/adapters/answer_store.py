"""Answers kept beside the history: one gzipped JSON file for each evaluation, found again by engine and task."""

from __future__ import annotations

import gzip
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import HistoryError

if TYPE_CHECKING:
    from pytest_vllmperf.domain.stored_answers import StoredAnswers

__all__ = ["FOLDER", "keep_answers", "latest_answers"]

FOLDER = "vllmperf-answers"
"""Beside the runs in pytest-benchmark's storage, which looks for ``*.json`` only."""
_SUFFIX = ".json.gz"


def keep_answers(directory: Path, answers: StoredAnswers) -> Path:
    """Write one evaluation; readers see all of it or nothing.

    Raises:
        HistoryError: It cannot be written.
    """
    import msgspec

    folder = directory / _safe(answers.task) / _safe(answers.engine)
    stamp = re.sub(r"[^0-9T]", "", answers.started_at.split("+")[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f"{stamp}-", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(gzip.compress(msgspec.json.encode(answers), mtime=0))
        path = Path(name).with_suffix(_SUFFIX)
        Path(name).replace(path)
    except OSError as error:
        raise HistoryError(f"{folder}: answers cannot be kept: {error.strerror}") from error
    return path


def latest_answers(directory: Path, *, engine: str, task: str) -> StoredAnswers | None:
    """The latest evaluation of ``task`` on ``engine``; None where none is kept.

    Raises:
        HistoryError: The latest file cannot be read.
    """
    import msgspec

    from pytest_vllmperf.domain.stored_answers import StoredAnswers

    files = sorted((directory / _safe(task) / _safe(engine)).glob(f"*{_SUFFIX}"), key=lambda p: p.stat().st_mtime_ns)
    if not files:
        return None
    try:
        return msgspec.json.decode(gzip.decompress(files[-1].read_bytes()), type=StoredAnswers)
    except (OSError, EOFError, msgspec.MsgspecError) as error:
        raise HistoryError(
            f"{files[-1]}: stored answers cannot be read ({error}); delete the file, and evaluate {engine!r} again"
        ) from error


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".") or "-"
