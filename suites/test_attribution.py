"""Attribution: which of the settings in which two engines differ is it? Launched as a design of experiments.

Runs only when asked: pytest suites/test_attribution.py --vllmperf-attribute baseline:max-perf
(--vllmperf-workload heavy takes another workload than burst, --vllmperf-budget "45 min" bounds the time).
"""


def test_what_makes_the_difference(vllm_attribute):
    """The effect of each setting on each metric, with interval; interactions; one sentence for each metric."""
    found = vllm_attribute()
    assert found.metrics, f"nothing could be attributed: {found.missing}"
