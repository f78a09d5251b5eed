"""History in pytest-benchmark's storage; the only importer of pytest-benchmark's insides.

pytest-benchmark has no public way to record a value it did not time itself, so metrics are appended
to its session as ``Metadata`` objects, right before it saves: from then on its JSON, ``list`` and
``compare`` treat them as their own. It knows seconds only, and "lower is better" only:

- Its terminal table leaves our metrics out, because the run's own table shows them with units,
  direction and verdict. With ``--benchmark-compare`` they stay in, and each group's header names the
  true unit. (``--benchmark-histogram`` then draws only those in seconds; it cannot label others.)
- The ``pytest-benchmark compare`` command asks ``./conftest.py`` alone for hooks. Import
  :func:`pytest_benchmark_scale_unit` there for true units; without it everything reads as seconds.
- ``--benchmark-compare-fail`` takes a higher throughput for a regression.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.metrics import Metric, metric
from pytest_vllmperf.domain.report import plain
from pytest_vllmperf.errors import HistoryError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vllmperf.domain.summary import MetricValue, Summary

__all__ = [
    "StoredMetric",
    "StoredRun",
    "StoredRuns",
    "as_stored",
    "earlier_runs",
    "prepare",
    "pytest_benchmark_scale_unit",
    "record",
    "run_as_file",
    "stored_runs",
]

_SCHEMA_KEY = "vllmperf_schema"
"""Marks a benchmark as one of ours in ``extra_info``; its value is the version of the keys beside it."""
_SCHEMA = 1


def prepare(config: Any) -> None:
    """Make pytest-benchmark ready for :func:`record`; call it in a ``pytest_configure`` that is not trylast.

    Changes nothing about ordinary benchmarks, and saves nothing by itself.

    Raises:
        HistoryError: pytest-benchmark is not loaded.
    """
    if not hasattr(config.option, "benchmark_autosave"):
        raise HistoryError(
            "history cannot be kept: the plugin pytest-benchmark is not loaded; remove '-p no:benchmark' "
            "(or add '-p pytest_benchmark.plugin' where PYTEST_DISABLE_PLUGIN_AUTOLOAD is set)"
        )
    if not config.pluginmanager.has_plugin(_HOOKS_NAME):
        config.pluginmanager.register(_hooks(), _HOOKS_NAME)


def record(config: Any, summaries: Sequence[Summary], *, extra: Mapping[str, object]) -> None:
    """Append every metric of ``summaries`` to pytest-benchmark's session, to be saved with raw samples.

    Call it on the controller before pytest-benchmark's own ``pytest_sessionfinish``. The run is then
    saved under an automatic name unless the user chose one (``--benchmark-save``) or none
    (``--benchmark-disable``; ``--benchmark-json`` still works). Metrics without a value, and those
    with a sample that is not finite, are left out: pytest-benchmark cannot hold None.

    ``extra`` is stored with every metric. Its ``outcomes``, a mapping from
    ``<engine>/<workload>::<metric>`` to an outcome, is narrowed to the metric's own; of its ``fingerprints``,
    a mapping from ``<engine>/<workload>``, the measurement's own is kept as ``fingerprint``; likewise of
    ``conditions``, and of ``subjects`` as ``subject``.

    Raises:
        HistoryError: pytest-benchmark is not active, or its insides are not as known.
        UnknownMetric: A metric is not in the catalogue.
    """
    session = getattr(config, "_benchmarksession", None)
    if session is None:
        raise HistoryError(
            "the run cannot be stored: pytest-benchmark has no session here; remove '-p no:benchmark', "
            "and record before the run ends"
        )
    entries = [entry for subject, summary in _subjects(summaries) for entry in _entries(subject, summary, extra)]
    if not entries:
        return
    try:
        session.benchmarks.extend([_benchmark(entry) for entry in entries])
        _turn_saving_on(config, session)
    except (AttributeError, ImportError, TypeError) as error:
        from importlib.metadata import version

        raise HistoryError(
            f"the run cannot be stored: pytest-benchmark {version('pytest-benchmark')} works differently inside "
            f"({type(error).__name__}: {error}); versions 5.0 to 5.3 are known to work"
        ) from error


def run_as_file(
    summaries: Sequence[Summary], *, extra: Mapping[str, object], machine_info: Mapping[str, object], at: str
) -> dict[str, object]:
    """The file :func:`record` would have left, for a run that pytest-benchmark did not see end.

    ``at`` is when it began (ISO 8601), ``extra`` as for :func:`record`.
    """
    from importlib.metadata import version

    entries = [entry for subject, summary in _subjects(summaries) for entry in _entries(subject, summary, extra)]
    return {
        "machine_info": dict(machine_info),
        "commit_info": {"id": extra.get("commit")},
        "benchmarks": [_benchmark(entry).as_dict(include_data=True) for entry in entries],
        "datetime": at,
        "version": version("pytest-benchmark"),
    }


def as_stored(summaries: Sequence[Summary], *, extra: Mapping[str, object], when: str) -> StoredRun:
    """What :func:`record` would store, as :func:`stored_runs` would read it; ``when`` is ISO 8601."""
    from pathlib import Path

    metrics = tuple(
        StoredMetric(
            fullname=entry.fullname,
            metric=str(entry.extra_info["metric"]),
            unit=str(entry.extra_info["unit"]),
            engine=entry.params["engine"],
            workload=entry.params["workload"],
            samples=entry.samples,
            extra_info=entry.extra_info,
        )
        for subject, summary in _subjects(summaries)
        for entry in _entries(subject, summary, extra)
    )
    return StoredRun(path=Path(), datetime=when, machine_info={}, commit_info={}, metrics=metrics)


def _turn_saving_on(config: Any, session: Any) -> None:
    """Save this run with its samples. Late, so that a run that measured nothing is as quiet as without us."""
    session.save_data = True
    switched_off = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    if not (session.save or session.autosave or switched_off):
        session.autosave = _insides("utils").get_tag()


def _insides(module: str) -> Any:
    """A module of pytest-benchmark, untyped as its insides are."""
    return importlib.import_module(f"pytest_benchmark.{module}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One metric of one summary, as pytest-benchmark will store it."""

    fullname: str
    group: str
    param: str
    params: dict[str, str]
    samples: tuple[float, ...]
    extra_info: dict[str, object]


def _subjects(summaries: Sequence[Summary]) -> Iterator[tuple[str, Summary]]:
    """``<engine>/<workload>`` of each summary, told apart by ``#2``, ``#3`` … when measured again."""
    seen: Counter[str] = Counter()
    for summary in summaries:
        subject = f"{summary.engine}/{summary.workload}"
        seen[subject] += 1
        yield (subject if seen[subject] == 1 else f"{subject}#{seen[subject]}"), summary


def _entries(subject: str, summary: Summary, extra: Mapping[str, object]) -> Iterator[_Entry]:
    for value in summary.metrics.values():
        if not value.samples or not all(math.isfinite(sample) for sample in value.samples):
            continue
        definition = metric(value.name)
        yield _Entry(
            fullname=f"{subject}::{value.name}",
            group=f"{value.name} [{definition.unit}]",
            param=subject,
            params={"engine": summary.engine, "workload": summary.workload},
            samples=tuple(float(sample) for sample in value.samples),
            extra_info=_extra_info(value, definition, summary, extra),
        )


def _extra_info(
    value: MetricValue, definition: Metric, summary: Summary, extra: Mapping[str, object]
) -> dict[str, object]:
    outcomes = extra.get("outcomes")
    info: dict[str, object] = {
        **extra,
        "outcomes": _own_outcomes(outcomes, definition, summary) if isinstance(outcomes, Mapping) else {},
        _SCHEMA_KEY: _SCHEMA,
        "metric": value.name,
        "unit": definition.unit,
        "better": definition.better,
        "engine": summary.engine,
        "workload": summary.workload,
        "model": summary.model,
        "kind": summary.kind,
        "invalid": summary.invalid,
        "n": value.n,
        "experiment": summary.experiment,
        **_replicated(value, summary),
    }
    fingerprints = info.pop("fingerprints", None)
    if isinstance(fingerprints, Mapping):
        info["fingerprint"] = fingerprints.get(f"{summary.engine}/{summary.workload}")
    for key, own in (("conditions", "conditions"), ("subjects", "subject")):
        found = info.pop(key, None)
        if isinstance(found, Mapping):
            info[own] = found.get(f"{summary.engine}/{summary.workload}")
    safe = plain(info)
    return safe if isinstance(safe, dict) else {}


def _replicated(value: MetricValue, summary: Summary) -> dict[str, object]:
    """Seconds of one measurement, and the value of each replicate, by statistic where it is a distribution."""
    replicates = summary.replicates
    if replicates is None:
        return {"duration_s": summary.duration_s}
    own = {name: values for name, values in replicates.values.items() if metric(name).family == value.name}
    own.update({name: values for name, values in replicates.values.items() if name == value.name})
    apart = replicates.kind == "launch" or "output_throughput" in replicates.values
    lasted = summary.duration_s / replicates.count if apart else summary.duration_s
    return {"duration_s": lasted, "replicate": replicates.kind, "replicates": own}


def _own_outcomes(outcomes: Mapping[str, object], definition: Metric, summary: Summary) -> dict[str, object]:
    """Outcomes of this metric and, for a distribution, of its statistics, by metric name."""
    prefix = f"{summary.engine}/{summary.workload}::"
    named = {key.removeprefix(prefix): outcome for key, outcome in outcomes.items() if key.startswith(prefix)}
    return {name: outcome for name, outcome in named.items() if definition.name in (name, metric(name).family)}


def _benchmark(entry: _Entry) -> Any:
    """A pytest-benchmark ``Metadata`` as its fixture would have left it."""
    fixture = SimpleNamespace(
        name=entry.fullname,
        fullname=entry.fullname,
        group=entry.group,
        param=entry.param,
        params=entry.params,
        extra_info=entry.extra_info,
        cprofile_stats=None,
        has_error=False,
    )
    benchmark = _insides("stats").Metadata(fixture, iterations=1, options={})
    for sample in entry.samples:
        benchmark.update(sample)
    return benchmark


_HOOKS_NAME = "vllmperf-history"
_PLURALS = {"B": "byte", "ratio": "ratio", "count": "count"}
"""pytest-benchmark prints "time in {prefix}s": what stands before that s for units that do not end in it."""


def pytest_benchmark_scale_unit(
    config: Any, unit: str, benchmarks: Sequence[Any], best: Any, worst: Any, sort: str
) -> tuple[str, float]:
    """The header's unit of one group: the metric's own, unscaled, where it is not seconds."""
    units = {(bench.get("extra_info") or {}).get("unit", "s") for bench in benchmarks}
    if units == {"s"}:
        of_seconds = _insides("plugin").pytest_benchmark_scale_unit
        prefix, factor = of_seconds(config=config, unit=unit, benchmarks=benchmarks, best=best, worst=worst, sort=sort)
        return str(prefix), float(factor)
    if unit == "operations":
        return "", 1.0
    if len(units) > 1:
        return "mixed unit", 1.0
    (only,) = units
    return _PLURALS.get(only, only.removesuffix("s")), 1.0


def _hooks() -> Any:
    """The hooks of pytest-benchmark this module answers, as a plugin object."""
    from pluggy import HookimplMarker

    hookimpl = HookimplMarker("pytest")

    class Hooks:
        """Stable machine facts, and a terminal table that says nothing wrong about our metrics."""

        @hookimpl
        def pytest_benchmark_scale_unit(
            self, config: Any, unit: str, benchmarks: Sequence[Any], best: Any, worst: Any, sort: str
        ) -> tuple[str, float] | None:
            if all(_SCHEMA_KEY not in (bench.get("extra_info") or {}) for bench in benchmarks):
                return None  # ordinary benchmarks: whoever else answers
            return pytest_benchmark_scale_unit(config, unit, benchmarks, best, worst, sort)

        @hookimpl
        def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
            _forget_clock_speed(machine_info)

        @hookimpl(wrapper=True)
        def pytest_benchmark_group_stats(self, config: Any) -> Generator[None, Any, Any]:
            return _groups_shown((yield), config)

    return Hooks()


def _forget_clock_speed(machine_info: dict[str, Any]) -> None:
    """Drop the momentary clock of the CPU: it differs at every start and makes every comparison warn."""
    cpu = machine_info.get("cpu")
    if isinstance(cpu, dict):
        for key in [key for key in cpu if str(key).startswith("hz_")]:
            del cpu[key]


def _groups_shown(groups: Sequence[tuple[Any, list[Any]]], config: Any) -> list[tuple[Any, list[Any]]]:
    comparing = bool(config.getoption("benchmark_compare"))
    drawing = bool(config.getoption("benchmark_histogram"))

    def shown(bench: Any) -> bool:
        info = bench.get("extra_info") or {}
        return _SCHEMA_KEY not in info or (comparing and (info["unit"] == "s" or not drawing))

    kept = [(name, [bench for bench in benchmarks if shown(bench)]) for name, benchmarks in groups]
    return [(name, benchmarks) for name, benchmarks in kept if benchmarks]


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
        metrics=tuple(_stored_metric(b) for b in content.benchmarks if _SCHEMA_KEY in b.extra_info),
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
