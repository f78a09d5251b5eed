"""Moving history between a project's storage and a remote, in both directions, so that nothing is lost or doubled."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.benchmark_storage import locked, next_number
from pytest_vllmperf.errors import HistoryError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.history_remotes import Remote

__all__ = ["Moved", "pull", "push"]

_BATCH = 50
"""Runs sent at once: a run holds every raw sample, so all of them may not fit in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What was moved: names as the receiver has them, how many it had already, and what was left out and why."""

    moved: tuple[str, ...]
    known: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    path: Path
    name: str


def push(storage: Path, remote: Remote) -> Moved:
    """Add every run of ``storage`` that ``remote`` does not hold yet. Pushing twice changes nothing.

    Raises:
        HistoryError: The remote cannot be read or written.
    """
    runs, warnings = _runs(storage)
    there = remote.names()
    contents = {_content_of(name) for name in there}
    new = [run for run in runs if _content_of(run.name) not in contents]
    for start in range(0, len(new), _BATCH):
        remote.add({run.name: run.path.read_bytes() for run in new[start : start + _BATCH]})
    return Moved(moved=tuple(run.name for run in new), known=len(runs) - len(new), warnings=tuple(warnings))


def pull(storage: Path, remote: Remote, *, latest: int | None = None) -> Moved:
    """Add every run of ``remote`` that ``storage`` does not hold yet, in the order of their time.

    Args:
        storage: The storage folder; made if need be.
        remote: Where to pull from.
        latest: Take only that many of the latest of each hardware.

    Raises:
        HistoryError: The remote cannot be read.
    """
    storage.mkdir(parents=True, exist_ok=True)
    runs, warnings = _runs(storage)
    here = {_content_of(run.name) for run in runs}
    wanted = list(_latest(remote.names(), latest))
    new = [name for name in wanted if _content_of(name) not in here]
    moved = []
    for name in new:
        content = remote.read(name)
        if hashlib.sha256(content).hexdigest()[:16] != _content_of(name):
            warnings.append(f"{name} is damaged there (its content is not what its name says) and was left out")
            continue
        moved.append(str(_write(storage, name, content).relative_to(storage)))
    return Moved(moved=tuple(moved), known=len(wanted) - len(new), warnings=tuple(warnings))


def _write(storage: Path, name: str, content: bytes) -> Path:
    hardware, _, rest = name.partition("/")
    folder = storage / hardware
    folder.mkdir(exist_ok=True)
    with locked(storage):
        path = folder / f"{next_number(folder):04}_{rest.split('_', 2)[2]}"
        draft = folder / f".{path.name}.draft"
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def _latest(names: frozenset[str], latest: int | None) -> Iterator[str]:
    """Sorted by name is sorted by time, for each hardware."""
    by_hardware: dict[str, list[str]] = {}
    for name in sorted(names):
        by_hardware.setdefault(name.partition("/")[0], []).append(name)
    for group in by_hardware.values():
        yield from group[-latest:] if latest else group


def _content_of(name: str) -> str:
    return name.partition("/")[2].split("_")[1]


def _runs(storage: Path) -> tuple[list[_Run], list[str]]:
    """Every run of a storage folder with its name in a remote, and a warning for each file that is none."""
    runs, warnings = [], []
    for path in sorted(storage.glob("*/[0-9]*_*.json")):
        try:
            runs.append(_Run(path=path, name=_remote_name(path)))
        except (OSError, ValueError, HistoryError) as error:  # noqa: PERF203 - one bad file must not hide the others
            warnings.append(f"history file {path} was left out, it cannot be read: {error}; remove or restore it")
    return runs, warnings


def _remote_name(path: Path) -> str:
    import msgspec

    content = path.read_bytes()
    told = msgspec.json.decode(content, type=_Dated).datetime
    began = dt.datetime.fromisoformat(told)
    if began.tzinfo is None:
        began = began.replace(tzinfo=dt.timezone.utc)
    stamp = began.astimezone(dt.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    name = re.sub(r"^\d+_", "", path.name)
    return f"{path.parent.name}/{stamp}_{hashlib.sha256(content).hexdigest()[:16]}_{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dated:
    datetime: str
