"""Handing metrics to pytest-benchmark, as if it had measured them.

It has no public way to record a value it did not time itself, so metrics are appended to its session as ``Metadata``
objects, right before it saves: from then on its JSON, ``list`` and ``compare`` treat them as their own.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.adapters.history.stored import SCHEMA, SCHEMA_KEY, StoredMetric, StoredRun
from pytest_vllmperf.adapters.history.tables import HOOKS_NAME, hooks
from pytest_vllmperf.domain.metrics import Metric, metric
from pytest_vllmperf.domain.report import plain
from pytest_vllmperf.errors import HistoryError

if TYPE_CHECKING:
    from pytest_vllmperf.domain.summary import MetricValue, Summary

__all__ = ["as_stored", "prepare", "record", "run_as_file"]


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
    if not config.pluginmanager.has_plugin(HOOKS_NAME):
        config.pluginmanager.register(hooks(), HOOKS_NAME)


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
        SCHEMA_KEY: SCHEMA,
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
