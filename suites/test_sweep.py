"""Sweep: every engine and workload that ``[[sweep]]`` in thresholds.toml puts together, each engine launched once.

Left out where the file lists none. The report answers which configuration is for which use; a sweep that was
interrupted goes on with ``--vllmperf-resume``.
"""


def test_what_is_listed(vllm_engine, vllm_swept, vllm_check):
    """Accuracy of answers; throughput, latency and memory of a load."""
    device = ["device_memory_peak"] if vllm_engine.device == "gpu" else []
    load = ["output_throughput", "ttft_mean", "tpot_mean", *device, "host_memory_peak"]
    vllm_check(vllm_swept, *(["accuracy"] if vllm_swept.kind == "quality" else load))
