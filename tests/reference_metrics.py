"""The reference server's ``/metrics``: vLLM's names, as counters, gauges and histograms in Prometheus text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

__all__ = ["HISTOGRAMS", "LEGACY_NAMES", "Histogram", "prometheus_text"]

_ITL_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
    *(640, 2560),
)
_LATENCY_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)

HISTOGRAMS: dict[str, tuple[float, ...]] = {
    "vllm:time_to_first_token_seconds": _TTFT_BUCKETS,
    "vllm:inter_token_latency_seconds": _ITL_BUCKETS,
    "vllm:request_time_per_output_token_seconds": _ITL_BUCKETS,
    "vllm:e2e_request_latency_seconds": _LATENCY_BUCKETS,
    "vllm:request_queue_time_seconds": _LATENCY_BUCKETS,
    "vllm:request_inference_time_seconds": _LATENCY_BUCKETS,
    "vllm:request_prefill_time_seconds": _LATENCY_BUCKETS,
    "vllm:request_decode_time_seconds": _LATENCY_BUCKETS,
}
LEGACY_NAMES = {
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_queries_total": "vllm:gpu_prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total": "vllm:gpu_prefix_cache_hits_total",
}
"""How older versions call what is called otherwise today."""


class Histogram:
    """A Prometheus histogram of seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str, labels: str) -> list[str]:
        rows = [f"# HELP {name} Histogram of seconds.", f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append(f'{name}_bucket{{le="{bound}",{labels}}} {total}.0')
        return [*rows, f"{name}_count{{{labels}}} {total}.0", f"{name}_sum{{{labels}}} {self.sum}"]


def prometheus_text(
    *,
    model: str,
    gauges: Mapping[str, float],
    counters: Mapping[str, float],
    histograms: Mapping[str, Histogram],
    legacy: bool = False,
) -> str:
    """The page. ``counters`` have no ``_total`` at their end; it is added, as is the creation gauge vLLM writes."""
    labels = f'engine="0",model_name="{model}"'
    lines = ['vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0']

    def called(name: str) -> str:
        return LEGACY_NAMES.get(name, name) if legacy else name

    for name, value in gauges.items():
        lines += [f"# TYPE {called(name)} gauge", f"{called(name)}{{{labels}}} {float(value)}"]
    for name, value in counters.items():
        total = called(f"{name}_total")
        family = total.removesuffix("_total")
        lines += [f"# TYPE {family} counter", f"{total}{{{labels}}} {float(value)}"]
        lines += [f"# TYPE {family}_created gauge", f"{family}_created{{{labels}}} 1.7e+09"]
    for name, histogram in histograms.items():
        lines += histogram.lines(called(name), labels)
    return "\n".join(lines) + "\n"
