"""Find a task's data in a directory of data sets as they are published: archives unpacked, or snapshots of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.question_files.reading import SPLITS, Rows, read_rows
from pytest_vllmperf.domain.published_data import published_data
from pytest_vllmperf.errors import TaskUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_vllmperf.domain.published_data import PublishedData

__all__ = ["read_published"]

_ENDINGS = (".jsonl", ".csv", ".parquet")
_EXAMPLES = ("train", "dev")
_NO_PARTS = frozenset(("data", "all", "auxiliary_train"))
"""Folders of MMLU's repository that are no subject."""


def read_published(
    directory: Path, task: str, *, fields: Sequence[str] = ()
) -> dict[str, Rows] | dict[str, dict[str, Rows]]:
    """Read the questions of lm-eval's ``task``.

    Its folder holds ``test.jsonl`` (and ``train.jsonl`` or ``dev.jsonl`` with worked examples), the files of the data
    set's own archive, or a snapshot of its repository on the hub.

    Args:
        directory: As given by ``--vllmperf-data``.
        task: One of lm-eval's tasks, or a group of them.
        fields: Fields every row must have as strings.

    Returns:
        Rows by split, the asked ones as ``test`` and worked examples as ``train`` or ``dev``; for a group that by task.

    Raises:
        TaskUnavailable: Nothing is there.
        TaskError: A row is malformed.
    """
    data = published_data(task)
    found = None if data.parts else _read(directory, data, fields)
    if found is not None:
        return found
    parts = {name: _read(directory, published_data(name), fields) for name in _parts(directory, task, data)}
    whole = {name: rows for name, rows in parts.items() if rows is not None}
    if not whole:
        raise TaskUnavailable(_nothing(directory, data))
    return whole


def _read(directory: Path, data: PublishedData, fields: Sequence[str]) -> dict[str, Rows] | None:
    for name in data.folders:
        for files in ({data.asked[0]: _existing(directory / f"{name}.jsonl")}, *_ways(directory / name, data)):
            asked = next((split for split in data.asked if files.get(split)), None)
            if asked is not None:
                examples = [split for split in _EXAMPLES if files.get(split) and split != asked]
                read = {split: _rows(files[split], data, fields) for split in (asked, *examples)}
                return {"test": read.pop(asked), **read}
    return None


def _ways(root: Path, data: PublishedData) -> list[dict[str, list[Path]]]:
    """The files of each split, by each way they may be told: by names of their own, by folder, or by split alone."""
    here = [path for path in sorted(root.rglob("*")) if path.suffix in _ENDINGS and path.is_file()]
    inner = {path: path.relative_to(root).parts[:-1] for path in here}
    return [
        _by_split((data.files[path.name], path) for path in here if path.name in data.files),
        _by_split((_split(path), path) for path in here if data.config in inner[path]),
        _by_split((_split(path), path) for path in here if inner[path] in ((), ("data",))),
    ]


def _split(path: Path) -> str | None:
    """``test`` of ``test.jsonl`` and of ``test-00000-of-00001.parquet``."""
    stem = path.stem.partition("-0")[0] if path.suffix == ".parquet" else path.stem
    return stem if stem in SPLITS else None


def _by_split(files: Iterable[tuple[str | None, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for split, path in files:
        if split is not None and (split not in found or found[split][0].suffix == path.suffix):
            found.setdefault(split, []).append(path)
    return found


def _existing(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _rows(paths: Sequence[Path], data: PublishedData, fields: Sequence[str]) -> Rows:
    return [data.row(row) for path in paths for row in read_rows(path, fields=fields, columns=data.columns)]


def _parts(directory: Path, task: str, data: PublishedData) -> list[str]:
    """Names of a group's tasks that have data here."""
    names = {path.name for path in directory.glob(f"{task}_*") if path.is_dir()}
    if data.parts:
        for root in (directory / name for name in data.folders):
            folders = {path.parent.name for path in root.rglob("*") if _split(path) == "test"} - {root.name, *_NO_PARTS}
            archive = {path.name.removesuffix("_test.csv") for path in root.rglob("*_test.csv")}
            names |= {f"{data.parts}{part}" for part in folders | archive}
    return sorted(names)


def _nothing(directory: Path, data: PublishedData) -> str:
    there = ", ".join(sorted(path.name for path in directory.glob("*"))) if directory.is_dir() else ""
    seen = f"it holds {there}" if there else "it is empty or missing"
    own = "".join(f", {name}" for name in data.files)
    return (
        f"{directory}: holds no {data.folders[0]}/ with test.jsonl ({seen}); put the data set there in its published "
        f"format (folder {' or '.join(data.folders)}; test.jsonl{own}, or a snapshot of the hub's repository with "
        "Parquet files), or leave --vllmperf-data out to take it from the hub"
    )
