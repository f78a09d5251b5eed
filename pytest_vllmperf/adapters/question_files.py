"""Questions from local files, in the format GSM8K is published in: one JSON object on each line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SPLITS", "read_questions"]

SPLITS = ("test", "train")
"""The files of a data directory: ``test.jsonl`` is asked, ``train.jsonl`` gives worked examples."""

Rows = list[dict[str, object]]


def read_questions(data: str, *, fields: Sequence[str] = ()) -> dict[str, Rows]:
    """Read a JSONL file, or a directory holding ``test.jsonl`` and possibly ``train.jsonl``.

    Args:
        data: Path of the file or directory.
        fields: Fields every row must have as strings, such as ``question`` and ``answer``.

    Returns:
        Rows by split; always with ``test``, with ``train`` only where that file exists.

    Raises:
        TaskError: Nothing is there, or a row is malformed (naming file and line).
    """
    path = Path(data).expanduser()
    if path.is_dir():
        files = {split: path / f"{split}.jsonl" for split in SPLITS}
        if not files["test"].is_file():
            raise TaskError(f"{path}: there is no test.jsonl in this directory; put the questions there")
        return {split: _rows(file, fields) for split, file in files.items() if file.is_file()}
    if not path.is_file():
        raise TaskError(f"{path}: no such file or directory; data must be a JSONL file or a directory with test.jsonl")
    return {"test": _rows(path, fields)}


def _rows(path: Path, fields: Sequence[str]) -> Rows:
    rows: Rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(line, f"{path}:{number}", fields))
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
