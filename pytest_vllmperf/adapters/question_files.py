"""Questions from local files, in the format GSM8K is published in: one JSON object on each line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import TaskError, TaskUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SPLITS", "read_group", "read_questions"]

SPLITS = ("test", "train", "dev", "validation")
"""The files of a data directory: ``test.jsonl`` is asked, ``train.jsonl`` or ``dev.jsonl`` gives worked examples."""
_ASKED = ("test.jsonl", "validation.jsonl", "input_data.jsonl")
"""What holds the questions: a test set, else a validation set, else IFEval's file as it is published."""

Rows = list[dict[str, object]]


def read_questions(data: str, *, fields: Sequence[str] = ()) -> dict[str, Rows]:
    """Read a JSONL file, or a directory holding ``test.jsonl`` and possibly ``train.jsonl`` or ``dev.jsonl``.

    Args:
        data: Path of the file or directory.
        fields: Fields every row must have as strings, such as ``question`` and ``answer``.

    Returns:
        Rows by split; always with ``test``, others only where their files exist.

    Raises:
        TaskError: Nothing is there, or a row is malformed (naming file and line).
    """
    path = Path(data).expanduser()
    if path.is_dir():
        files = {split: path / f"{split}.jsonl" for split in SPLITS}
        asked = next((path / name for name in _ASKED if (path / name).is_file()), None)
        if asked is None:
            raise TaskError(f"{path}: there is no test.jsonl in this directory; put the questions there")
        files["test"] = asked
        return {split: _rows(file, fields) for split, file in files.items() if file.is_file()}
    if not path.is_file():
        raise TaskError(f"{path}: no such file or directory; data must be a JSONL file or a directory with test.jsonl")
    return {"test": _rows(path, fields)}


def read_group(
    directory: Path, name: str, *, fields: Sequence[str] = ()
) -> dict[str, Rows] | dict[str, dict[str, Rows]]:
    """Read a task's questions from a directory of data sets: ``NAME/``, or ``NAME_*/`` for a group of tasks.

    Args:
        directory: As given by ``--vllmperf-data``.
        name: The task's folder, or the group whose tasks' folders begin with its name.
        fields: Fields every row must have as strings.

    Returns:
        As :func:`read_questions`; for a group, that by task.

    Raises:
        TaskUnavailable: Neither is there.
        TaskError: A row is malformed.
    """
    folder = directory / name
    if folder.is_dir() or folder.with_suffix(".jsonl").is_file():
        return read_questions(str(folder if folder.is_dir() else folder.with_suffix(".jsonl")), fields=fields)
    parts = sorted(path for path in directory.glob(f"{name}_*") if path.is_dir())
    if not parts:
        there = ", ".join(sorted(path.name for path in directory.glob("*"))) if directory.is_dir() else ""
        seen = f"it holds {there}" if there else "it is empty or missing"
        raise TaskUnavailable(
            f"{directory}: holds no {name}/ with test.jsonl ({seen}); put the data set "
            "there in its published format, or leave --vllmperf-data out to take it from the hub"
        )
    return {path.name: read_questions(str(path), fields=fields) for path in parts}


def _rows(path: Path, fields: Sequence[str]) -> Rows:
    rows: Rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(line, f"{path}:{number}", fields))
    for number, row in enumerate(rows[1:], start=2):
        if lacking := rows[0].keys() - row.keys():
            raise TaskError(f"{path}: question {number} lacks {sorted(lacking)!r}, which question 1 has")
    if not rows:
        raise TaskError(f"{path}: holds no question")
    return rows


def _row(line: str, where: str, fields: Sequence[str]) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{where}: not JSON ({error}): {line[:80]!r}") from None
    if not isinstance(row, dict):
        raise TaskError(f'{where}: {line[:80]!r} must be a JSON object such as {{"question": …, "answer": …}}')
    for name in fields:
        if not isinstance(row.get(name), str):
            raise TaskError(f"{where}: field {name!r} is {row.get(name)!r}, it must be a string")
    if "answer" in fields and "####" not in str(row["answer"]):
        raise TaskError(
            f"{where}: answer {str(row['answer'])[-60:]!r} must end in '#### ' and the result, as GSM8K's do"
        )
    return row
