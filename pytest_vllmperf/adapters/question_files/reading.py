"""Read the rows of question files: JSONL (one object on each line, as GSM8K is published), CSV, Parquet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SPLITS", "Rows", "read_questions", "read_rows"]

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


def read_rows(path: Path, *, fields: Sequence[str] = (), columns: Sequence[str] | None = None) -> Rows:
    """Read one file, whatever its format.

    Args:
        path: Ends in ``.jsonl``, ``.csv`` or ``.parquet``.
        fields: Fields every row must have as strings.
        columns: Names of a CSV file's columns, where its first line does not give them.

    Raises:
        TaskError: It cannot be read, or a row is malformed (naming file and line).
    """
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix == ".csv":
        rows = _csv(path, columns)
    else:
        return _rows(path, fields)
    if not rows:
        raise TaskError(f"{path}: holds no question")
    for number, row in enumerate(rows, start=1):
        _check_fields(row, f"{path}: question {number}", fields)
    return rows


def _parquet(path: Path) -> Rows:
    from pyarrow import ArrowException, parquet

    try:
        rows: Rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise TaskError(
            f"{path}: cannot be read as Parquet ({error}); a file of some hundred bytes is a pointer of Git LFS: "
            "fetch the data itself (git lfs pull)"
        ) from error
    return rows


def _csv(path: Path, columns: Sequence[str] | None) -> Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, fieldnames=columns)
            rows: Rows = []
            for row in reader:
                if None in row or None in row.values():
                    names = ", ".join(reader.fieldnames or ())
                    raise TaskError(f"{path}:{reader.line_num}: a row must have one value for each of {names}")
                rows.append(dict(row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path}: cannot be read: {error}") from error
    return rows


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
    _check_fields(row, where, fields)
    return row


def _check_fields(row: dict[str, object], where: str, fields: Sequence[str]) -> None:
    for name in fields:
        if not isinstance(row.get(name), str):
            raise TaskError(f"{where}: field {name!r} is {row.get(name)!r}, it must be a string")
    if "answer" in fields and "####" not in str(row["answer"]):
        raise TaskError(
            f"{where}: answer {str(row['answer'])[-60:]!r} must end in '#### ' and the result, as GSM8K's do"
        )
