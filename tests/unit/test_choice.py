"""The Pareto front, and which configuration for which use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.choice import Requirement, Rule, choose
from pytest_vllmperf.domain.metrics import Better
from pytest_vllmperf.domain.pareto import pareto_front
from pytest_vllmperf.errors import UnknownMetric

UP, DOWN = Better.HIGHER, Better.LOWER
GIB = 2.0**30
MEASURED = {
    "baseline": {
        ("heavy", "output_throughput"): 843.0,
        ("single-user", "ttft_mean"): 0.30,
        ("heavy", "device_memory_peak"): 11.1 * GIB,
        ("gsm8k", "accuracy"): 0.9,
    },
    "max-perf": {
        ("heavy", "output_throughput"): 433.0,
        ("single-user", "ttft_mean"): 0.22,
        ("heavy", "device_memory_peak"): 10.9 * GIB,
        ("gsm8k", "accuracy"): 0.5,
    },
    "small": {("heavy", "output_throughput"): 830.0, ("heavy", "device_memory_peak"): 5.0 * GIB},
}


def test_who_is_beaten_in_everything_is_not_on_the_front():
    values = {"a": (100.0, 0.2), "b": (90.0, 0.1), "c": (80.0, 0.3), "d": (100.0, None)}
    assert pareto_front(values, (UP, DOWN)) == ("a", "b")


def test_noise_beats_nobody():
    values = {"a": (100.0, 0.2), "b": (99.0, 0.2)}
    assert pareto_front(values, (UP, DOWN)) == ("a",)
    assert pareto_front(values, (UP, DOWN), margin=(0.05, 0.05)) == ("a", "b")


@given(st.dictionaries(st.text(max_size=3), st.tuples(*[st.floats(0, 1e6)] * 3), min_size=1, max_size=12))
def test_the_front_is_never_empty_and_nobody_on_it_is_dominated(values):
    front = pareto_front(values, (UP, DOWN, UP))
    assert front
    for name in front:
        up, down, also_up = values[name]
        assert not any(
            a >= up and b <= down and c >= also_up and (a, b, c) != (up, down, also_up) for a, b, c in values.values()
        )


def test_the_best_one_is_chosen_and_who_is_as_good_is_told():
    choice = choose(Rule(use="many users", workload="heavy", best="output_throughput"), MEASURED)
    assert (choice.engine, choice.equal) == ("baseline", ("small",))
    assert choice.sentence == "many users: baseline (output throughput 843 tok/s, as good: small)"


def test_lower_is_better_where_the_catalogue_says_so():
    choice = choose(Rule(use="lowest TTFT", workload="single-user", best="ttft_mean"), MEASURED)
    assert choice.engine == "max-perf"
    assert choice.left_out == {"small": "TTFT mean of single-user was not measured"}


def test_requirements_leave_engines_out_with_the_reason():
    fits = Requirement(metric="device_memory_peak", maximum=8 * GIB, text="≤ 8 GiB")
    choice = choose(Rule(use="8 GiB", workload="heavy", best="output_throughput", requires=(fits,)), MEASURED)
    assert choice.engine == "small"
    assert choice.left_out["baseline"] == "device memory peak 11.1 GiB misses ≤ 8 GiB"


def test_nobody_may_qualify():
    right = Requirement(metric="accuracy", workload="gsm8k", minimum=0.95, text="≥ 95 %")
    choice = choose(Rule(use="exact", workload="heavy", best="output_throughput", requires=(right,)), MEASURED)
    assert choice.engine is None
    assert choice.sentence == (
        "exact: none (baseline: accuracy of gsm8k 90 % misses ≥ 95 %; max-perf: accuracy of gsm8k 50 % misses ≥ 95 %; "
        "small: accuracy of gsm8k was not measured)"
    )


def test_unknown_metrics_are_told():
    with pytest.raises(UnknownMetric, match="ttft"):
        choose(Rule(use="x", workload="heavy", best="ttft"), MEASURED)
