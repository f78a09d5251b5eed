import math
from collections.abc import Iterator

import pytest

from pytest_vllmperf.domain import metrics
from pytest_vllmperf.domain.metrics import METRICS, STATISTICS, Better, judgeable_metric, metric, register_metric
from pytest_vllmperf.errors import UnknownMetric


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, metrics.Metric]]:
    """A catalogue that forgets what a test registers."""
    copy = dict(METRICS)
    monkeypatch.setattr(metrics, "METRICS", copy)
    return copy


def test_every_distribution_has_every_statistic_in_the_same_unit_and_direction() -> None:
    distributions = [m for m in METRICS.values() if m.distribution]
    assert {m.name for m in distributions} >= {"ttft", "itl", "tpot", "e2el", "per_request_throughput"}
    for whole in distributions:
        for statistic in STATISTICS:
            part = METRICS[f"{whole.name}_{statistic}"]
            assert (part.family, part.statistic) == (whole.name, statistic)
            assert (part.unit, part.better, part.tolerance) == (whole.unit, whole.better, whole.tolerance)
            assert not part.distribution


def test_throughput_and_accuracy_improve_upwards_and_latency_downwards() -> None:
    higher = {name for name, m in METRICS.items() if m.better is Better.HIGHER}
    assert {"output_throughput", "request_throughput", "goodput", "accuracy", "per_request_throughput_p50"} <= higher
    assert not {name for name in higher if m_is_latency(name)}
    assert METRICS["kv_cache_usage_peak"].better is Better.NEITHER


def m_is_latency(name: str) -> bool:
    return METRICS[name].unit == "s"


@pytest.mark.parametrize(
    ("name", "quantile", "confidence"), [("p90", 0.90, 0.95), ("p95", 0.95, 0.95), ("p99", 0.99, 0.99)]
)
def test_a_percentile_asks_for_enough_samples_to_be_bounded_by_one(
    name: str, quantile: float, confidence: float
) -> None:
    needed = math.log(1 - confidence) / math.log(quantile)
    assert needed <= STATISTICS[name].minimum_samples < needed + 2
    assert METRICS[f"ttft_{name}"].minimum_samples == STATISTICS[name].minimum_samples


def test_a_mean_and_a_scalar_need_one_sample() -> None:
    assert METRICS["ttft_mean"].minimum_samples == METRICS["ttft_p50"].minimum_samples == 1
    assert METRICS["output_throughput"].minimum_samples == 1


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("ttft_mean", "TTFT mean"),
        ("service_e2el_p99", "service E2EL p99"),
        ("output_throughput", "output throughput"),
        ("kv_cache_usage_peak", "KV cache usage peak"),
    ],
)
def test_a_label_reads_as_prose(name: str, label: str) -> None:
    assert METRICS[name].label == label


def test_an_unknown_metric_is_told_with_the_nearest_names() -> None:
    with pytest.raises(UnknownMetric, match=r"'ttft_maen' is unknown; did you mean ttft_mean"):
        metric("ttft_maen")


def test_a_metric_like_no_other_is_told_with_all_names() -> None:
    with pytest.raises(UnknownMetric, match=r"known: .*output_throughput.*ttft_p99"):
        metric("§")


def test_a_bare_distribution_cannot_be_judged_and_its_statistics_are_listed() -> None:
    assert metric("ttft").distribution
    with pytest.raises(UnknownMetric, match=r"ttft_mean, ttft_p50, ttft_p90, ttft_p95, ttft_p99"):
        judgeable_metric("ttft")
    assert judgeable_metric("ttft_mean") is METRICS["ttft_mean"]


def test_a_registered_distribution_brings_its_statistics(catalogue: dict[str, metrics.Metric]) -> None:
    register_metric(
        name="queue_wait",
        unit="s",
        better=Better.LOWER,
        formula="scheduled - arrived",
        tolerance=0.2,
        distribution=True,
    )
    assert catalogue["queue_wait"].distribution
    assert catalogue["queue_wait_p99"].minimum_samples == 459
    assert metric("queue_wait_mean").formula == "mean of queue_wait: scheduled - arrived"
    assert "queue_wait" not in METRICS


def test_registering_the_same_twice_is_fine_and_another_meaning_is_not(catalogue: dict[str, metrics.Metric]) -> None:
    for _ in range(2):
        register_metric(name="joules", unit="J/tok", better=Better.LOWER, formula="energy / tokens")
    with pytest.raises(UnknownMetric, match=r"'joules' is already in the catalogue"):
        register_metric(name="joules", unit="J/tok", better=Better.HIGHER, formula="energy / tokens")
