"""Reports of earlier runs: from their ``report.json``, or as far as history kept them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.errors import HistoryError

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.history import StoredMetric, StoredRun
    from pytest_vllmperf.domain.report import Report
    from pytest_vllmperf.domain.summary import Summary
    from pytest_vllmperf.domain.thresholds import Verdict

__all__ = ["find_report", "read_report", "recalled"]

_REPORT = "report.json"


def find_report(source: str, *, directory: Path, storage: Path) -> Report:
    """The report that ``source`` names.

    That is a ``report.json`` or the folder that holds one, relative to ``directory``; or, of the runs in history, its
    number (``12`` or ``0012``), ``latest``, or ``latest~2`` for the second before it.

    Raises:
        HistoryError: There is no such report, or it cannot be read.
    """
    path = directory / source
    if path.is_dir():
        path = path / _REPORT
    if path.is_file():
        return read_report(path)
    from pytest_vllmperf.adapters.history import stored_runs

    runs = [run for run in stored_runs(storage).runs if run.metrics]
    found = _chosen(source, runs)
    if found is None:
        known = ", ".join(f"{run.path.name.partition('_')[0]} ({run.datetime[:16]})" for run in runs[-5:]) or "none"
        raise HistoryError(
            f"{source}: no report at {path}, and no such run in {storage}; its latest: {known}. Name a report.json, a "
            "folder with one, the number of a stored run, or latest"
        )
    return recalled(found)


def _chosen(source: str, runs: Sequence[StoredRun]) -> StoredRun | None:
    word, _, back = source.partition("~")
    if word == "latest" and (not back or back.isdigit()):
        place = -1 - int(back or 0)
        return runs[place] if len(runs) >= -place else None
    if source.isdigit():
        numbered = [run for run in runs if run.path.name.partition("_")[0].isdigit()]
        matching = [run for run in numbered if int(run.path.name.partition("_")[0]) == int(source)]
        return matching[-1] if matching else None
    return None


def read_report(path: Path) -> Report:
    """Read a ``report.json`` back.

    Raises:
        HistoryError: It cannot be read, is no report, or is one of another version.
    """
    import msgspec

    from pytest_vllmperf.adapters.writers import SCHEMA_VERSION
    from pytest_vllmperf.domain.report import Report

    try:
        content: Any = msgspec.json.decode(path.read_bytes())
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise HistoryError(
                f"{path}: schema_version is {version!r}, this version of vllmperf reads {SCHEMA_VERSION}; "
                "is it a report.json?"
            )
        return msgspec.convert(_finite(content), Report)
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HistoryError(f"{path}: not a report.json that can be read: {error}") from error


def _finite(content: dict[str, Any]) -> dict[str, Any]:
    """Samples that were not finite are null in the file; what is left is what can be drawn."""
    for summary in content.get("summaries") or ():
        for value in (summary.get("metrics") or {}).values():
            samples = value.get("samples")
            if samples and None in samples:
                value["samples"] = [sample for sample in samples if sample is not None]
    return content


def recalled(run: StoredRun) -> Report:
    """A stored run as a report: every metric with its samples, and the outcomes.

    History keeps neither limits nor timelines, logs and flags, and says so in the report's problems.
    """
    from pytest_vllmperf.domain.report import EngineReport, Report

    info = run.metrics[0].extra_info if run.metrics else {}
    groups: dict[tuple[str, str], list[StoredMetric]] = defaultdict(list)
    for stored in run.metrics:
        groups[stored.engine, stored.workload].append(stored)
    summaries = tuple(_summary(group) for group in groups.values())
    models = {summary.engine: summary.model for summary in summaries}
    engines = tuple(
        EngineReport(
            name=name,
            model=model,
            state="measured",
            reason=None,
            command=(),
            env={},
            version=_text(info.get("vllm")) or None,
            log_path=None,
            launches=1,
        )
        for name, model in models.items()
    )
    return Report(
        started_at=_text(info.get("started_at")) or run.datetime,
        duration_s=sum(summary.duration_s for summary in summaries),
        environment=_environment(run, info),
        engines=engines,
        summaries=summaries,
        verdicts=tuple(verdict for group in groups.values() for verdict in _verdicts(group)),
        problems=(f"rebuilt from {run.path.name}: limits, timelines, flags and logs are not kept in history",),
        exit_code=_whole(info.get("exit_code")),
    )


def _summary(group: Sequence[StoredMetric]) -> Summary:
    from pytest_vllmperf.domain.metrics import METRICS
    from pytest_vllmperf.domain.summary import Summary, metric_values

    first = group[0]
    known = {stored.metric: stored.samples for stored in group if stored.metric in METRICS}
    distributions = {name: samples for name, samples in known.items() if METRICS[name].distribution}
    kind = _text(first.extra_info.get("kind"))
    count = max((len(samples) for name, samples in distributions.items() if name != "itl"), default=1)
    invalid = first.extra_info.get("invalid")
    return Summary(
        engine=first.engine,
        workload=first.workload,
        kind=kind if kind in ("quality", "startup") else "load",  # type: ignore[arg-type]
        model=_text(first.extra_info.get("model")),
        description="",
        requests=count,
        completed=count,
        failures={},
        duration_s=0.0,
        metrics=metric_values(
            distributions=distributions,
            scalars={name: samples[-1] for name, samples in known.items() if name not in distributions},
        ),
        invalid=tuple(map(str, invalid)) if isinstance(invalid, (list, tuple)) else (),
        warnings=(),
        facts={},
    )


def _verdicts(group: Sequence[StoredMetric]) -> Iterator[Verdict]:
    from pytest_vllmperf.domain.metrics import METRICS
    from pytest_vllmperf.domain.stats import reduce_samples
    from pytest_vllmperf.domain.thresholds import Outcome, Verdict

    for stored in group:
        outcomes = stored.extra_info.get("outcomes")
        for name, outcome in (outcomes if isinstance(outcomes, Mapping) else {}).items():
            if name in METRICS and str(outcome) in Outcome._value2member_map_:
                yield Verdict(
                    outcome=Outcome(str(outcome)),
                    engine=stored.engine,
                    workload=stored.workload,
                    metric=str(name),
                    value=reduce_samples(stored.samples, METRICS[name].statistic or "mean"),
                    n=len(stored.samples),
                    limit=None,
                    reason="judged when it was measured; history keeps no limits",
                )


def _environment(run: StoredRun, info: Mapping[str, object]) -> Any:
    from pytest_vllmperf.domain.environment import Environment

    cpu = run.machine_info.get("cpu")
    cpu = cpu if isinstance(cpu, Mapping) else {}
    vllm = _text(info.get("vllm"))
    hardware = _text(info.get("hardware")) or "unknown"
    return Environment(
        hardware=hardware,
        device="cpu" if hardware.startswith("CPU ") else "gpu",
        gpus=(),
        driver=None,
        cpu=_text(cpu.get("brand_raw")) or "unknown",
        cores=_whole(cpu.get("count")),
        memory_bytes=0,
        platform=_text(run.machine_info.get("system")) or "unknown",
        python=_text(run.machine_info.get("python_version")) or "unknown",
        packages={"vllm": vllm} if vllm else {},
        commit=_text(info.get("commit")) or None,
        dirty=None,
        warnings=(),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
