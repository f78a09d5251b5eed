"""Runs as the storage holds them, and reading them back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SCHEMA", "SCHEMA_KEY", "StoredMetric", "StoredRun", "StoredRuns", "earlier_runs", "stored_runs"]

SCHEMA_KEY = "vllmperf_schema"
"""Marks a benchmark as one of ours in ``extra_info``; its value is the version of the keys beside it."""
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMetric:
    """One metric of a stored run; ``samples`` are in ``unit``. ``extra_info`` is all that was stored with it."""

    fullname: str
    metric: str
    unit: str
    engine: str
    workload: str
    samples: tuple[float, ...]
    extra_info: Mapping[str, object]

    @property
    def usable_as_baseline(self) -> bool:
        """True for a sound value of a whole run that did not fail, break off or measure quickly."""
        return self.extra_info.get("baseline") is True and not self.extra_info.get("invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """One file of the storage. ``datetime`` is ISO 8601, as written."""

    path: Path
    datetime: str
    machine_info: Mapping[str, object]
    commit_info: Mapping[str, object]
    metrics: tuple[StoredMetric, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRuns:
    """Every readable run, oldest first, and one sentence for each file that had to be skipped."""

    runs: tuple[StoredRun, ...]
    warnings: tuple[str, ...]


def earlier_runs(config: Any, *, at_most: int) -> StoredRuns:
    """The latest runs stored where this one goes; none where pytest-benchmark does not store in files."""
    storage = getattr(getattr(config, "_benchmarksession", None), "storage", None)
    folder = getattr(storage, "path", None)
    return StoredRuns(runs=(), warnings=()) if folder is None else stored_runs(folder, at_most=at_most)


def stored_runs(storage: Path, *, at_most: int | None = None) -> StoredRuns:
    """Read a storage folder (``.benchmarks``) back. Ordinary benchmarks in its files are passed over.

    A file that is truncated, is not JSON or lacks something is skipped with a warning that names it.
    A storage that does not exist holds no runs. With ``at_most`` only that many of the latest are kept, and
    of each folder no more files are read.
    """
    runs: list[StoredRun] = []
    warnings: list[str] = []
    numbered = [*storage.glob("[0-9]*_*.json"), *storage.glob("*/[0-9]*_*.json")]
    numbered.sort(key=lambda path: (path.parent, path.name))
    folders = itertools.groupby(numbered, key=lambda path: path.parent)
    latest = [path for _, files in folders for path in list(files)[-at_most if at_most else None :]]
    for path in latest:
        try:
            runs.append(_stored_run(path))
        except (OSError, ValueError) as error:  # noqa: PERF203 - one bad file must not hide the others
            warnings.append(f"history file {path} was skipped, it cannot be read: {error}; remove or restore it")
    runs = _oldest_first(runs)
    return StoredRuns(runs=tuple(runs[-at_most if at_most else None :]), warnings=tuple(warnings))


def _oldest_first(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """By time between folders, and by their numbers within one: a clock that was set back changes no order."""
    latest: dict[Path, str] = {}
    moments = []
    for run in runs:  # within a folder by number already
        latest[run.path.parent] = max(run.datetime, latest.get(run.path.parent, ""))
        moments.append((latest[run.path.parent], run))
    return [run for _, run in sorted(moments, key=lambda pair: pair[0])]


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileStats:
    data: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileBenchmark:
    fullname: str
    stats: _FileStats
    extra_info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    datetime: str
    benchmarks: tuple[_FileBenchmark, ...]
    machine_info: dict[str, object] = field(default_factory=dict)
    commit_info: dict[str, object] = field(default_factory=dict)


def _stored_run(path: Path) -> StoredRun:
    import msgspec

    content = msgspec.json.decode(path.read_bytes(), type=_File)
    return StoredRun(
        path=path,
        datetime=content.datetime,
        machine_info=content.machine_info,
        commit_info=content.commit_info,
        metrics=tuple(_stored_metric(b) for b in content.benchmarks if SCHEMA_KEY in b.extra_info),
    )


def _stored_metric(benchmark: _FileBenchmark) -> StoredMetric:
    info = benchmark.extra_info
    lacking = [key for key in ("metric", "unit", "engine", "workload") if not isinstance(info.get(key), str)]
    if lacking:
        raise ValueError(f"benchmark {benchmark.fullname!r} lacks {', '.join(lacking)} in its extra_info")
    if not benchmark.stats.data:
        raise ValueError(f"benchmark {benchmark.fullname!r} has no samples")
    return StoredMetric(
        fullname=benchmark.fullname,
        metric=info["metric"],
        unit=info["unit"],
        engine=info["engine"],
        workload=info["workload"],
        samples=benchmark.stats.data,
        extra_info=info,
    )
