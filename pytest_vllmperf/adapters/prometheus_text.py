"""The final metrics of a run for Prometheus: as text, for its textfile collector, and pushed to a push gateway."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_vllmperf.domain.metrics import metric
from pytest_vllmperf.domain.thresholds import Outcome
from pytest_vllmperf.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vllmperf.domain.report import Report

__all__ = ["check_gateway", "push_metrics", "write_metrics"]

_UNITS = {"s": "seconds", "B": "bytes", "ratio": "ratio", "tok/s": "tokens_per_second", "req/s": "requests_per_second"}
_LABELS = ("engine", "workload", "model", "hardware")
_JOB = "vllmperf"
_PUSH_S = 10.0


def write_metrics(report: Report, path: Path) -> None:
    """Write every value in the text format: ``vllmperf_ttft_mean_seconds{engine=…, workload=…, model=…, hardware=…}``.

    ``vllmperf_verdict`` is 1 for the outcome of each judged metric, ``vllmperf_exit_code`` and
    ``vllmperf_finished_timestamp_seconds`` tell of the run. Values of INVALID measurements are left out, as
    they mean nothing; their verdict is there. The file appears whole or not at all.

    Raises:
        OSError: ``path`` cannot be written.
    """
    from prometheus_client import generate_latest

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(generate_latest(_registry(report)))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_gateway(url: str) -> str:
    """``url`` itself, if metrics can be pushed there.

    Raises:
        ConfigError: It is no http or https URL.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--vllmperf-push={url}: not the URL of a Prometheus push gateway; give one such as http://gateway:9091"
        )
    return parts.geturl()


def push_metrics(report: Report, url: str) -> str | None:
    """Push what :func:`write_metrics` writes, under job ``vllmperf``; why that failed, or None.

    A gateway that is down must not lose a run that was measured: it is told, never raised.
    """
    from prometheus_client import push_to_gateway

    try:
        push_to_gateway(url, job=_JOB, registry=_registry(report), timeout=_PUSH_S)
    except Exception as error:  # noqa: BLE001 - urllib, http.client and ssl raise what they like
        return f"metrics were not pushed to {url}: {type(error).__name__}: {error}"
    return None


def _registry(report: Report) -> Any:
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()
    gauges: dict[str, Any] = {}
    for summary in report.summaries:
        labels = (summary.engine, summary.workload, summary.model, report.environment.hardware)
        for value in summary.metrics.values():
            if value.value is None or summary.invalid:
                continue
            name = _name(value.name)
            if name not in gauges:
                gauges[name] = Gauge(name, metric(value.name).formula, _LABELS, registry=registry)
            gauges[name].labels(*labels).set(value.value)
    _run_gauges(report, registry)
    return registry


def _run_gauges(report: Report, registry: Any) -> None:
    import datetime as dt

    from prometheus_client import Gauge

    verdicts = Gauge(
        "vllmperf_verdict",
        "1 for the outcome of each judged metric",
        ("engine", "workload", "metric", "outcome"),
        registry=registry,
    )
    for verdict in report.verdicts:
        if verdict.outcome is not Outcome.NOT_JUDGED:
            verdicts.labels(verdict.engine, verdict.workload, verdict.metric, str(verdict.outcome)).set(1)
    Gauge("vllmperf_exit_code", "exit code of the run", registry=registry).set(report.exit_code)
    finished = dt.datetime.fromisoformat(report.started_at).timestamp() + report.duration_s
    Gauge("vllmperf_finished_timestamp_seconds", "when the run ended", registry=registry).set(finished)


def _name(metric_name: str) -> str:
    """The metric's name with its base unit at the end, as Prometheus wants it."""
    unit = metric(metric_name).unit
    suffix = _UNITS.get(unit, "" if unit == "count" else unit.replace("/", "_per_"))
    stem = "".join(c if c.isalnum() else "_" for c in metric_name)
    return "_".join(part for part in ("vllmperf", stem, "".join(c if c.isalnum() else "_" for c in suffix)) if part)
