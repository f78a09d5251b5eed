"""What may be claimed about each setting, and how it is said."""

import math

import numpy as np
import pytest

from pytest_vllmperf.domain.attribution import Attribution, Run, Wanted, attribute
from pytest_vllmperf.domain.factorial import design_for, launch_order
from pytest_vllmperf.domain.factors import Factor, Setting

FACTORS = tuple(
    Factor(settings=(Setting(kind="flag", name=name, base=None, candidate=1),))
    for name in ("kv-offloading-size", "kv-cache-dtype", "max-num-seqs", "seed")
)
TPOT = Wanted(workload="burst", metric="tpot_mean", tolerance=0.05)
THROUGHPUT = Wanted(workload="burst", metric="output_throughput", tolerance=0.05)
MEMORY = Wanted(workload="burst", metric="device_memory_peak", tolerance=0.02)
PREEMPTIONS = Wanted(workload="burst", metric="preemptions", tolerance=0.0)


def runs(level, *, sd=0.01, rounds=4, seed=3, factors=4) -> tuple[Run, ...]:
    """Launches whose values are ``level(on)``, by metric, with lognormal noise on all but memory and counts."""
    rng, design = np.random.default_rng(seed), design_for(factors)

    def noisy(name, value):
        return value if value is None or name in ("device_memory_peak", "preemptions") else value * rng.lognormal(0, sd)

    return tuple(
        Run(
            round=number,
            point=point,
            values={("burst", name): noisy(name, value) for name, value in level(design.points[point]).items()},
        )
        for number, order in enumerate(launch_order(len(design.points), rounds, seed))
        for point in order
    )


def attributed(level, *wanted, **kwargs) -> Attribution:
    return attribute(design_for(4), FACTORS, runs(level, **kwargs), wanted)


def slower(on):
    return {
        "tpot_mean": 0.01 * (1.37 if on[0] else 1) * (1.1 if on[0] and on[2] else 1),
        "output_throughput": 1000 * (0.73 if on[0] else 1) * (0.97 if on[1] else 1),
        "device_memory_peak": 10.0e9 - (1.0e9 if on[1] else 0),
        "preemptions": 3.0 if on[0] else 0.0,
    }


def test_the_setting_behind_a_change_is_named_and_the_others_are_cleared():
    (found,) = attributed(slower, THROUGHPUT).metrics
    by_name = {f.factor: f for f in found.factors}
    assert by_name["kv-offloading-size"].status == "effect"
    assert by_name["kv-offloading-size"].change is not None
    assert by_name["kv-offloading-size"].change.value == pytest.approx(-0.27, abs=0.02)
    assert [by_name[name].status for name in ("max-num-seqs", "seed")] == ["no effect"] * 2
    assert found.total_matters
    assert found.interactions == ()
    assert found.remainder is None


def test_the_plain_sentence():
    (found,) = attributed(slower, THROUGHPUT, sd=1e-4).metrics
    assert found.sentence == (
        "kv-offloading-size explains -27 % [-27, -27] of the -29 % output throughput (burst); "
        "kv-cache-dtype -3 % [-3, -3] (within 5 %); max-num-seqs 0 % [0, 0] (within 5 %); seed 0 % [0, 0] (within 5 %)"
    )


def test_an_interaction_is_said_and_not_hidden():
    (found,) = attributed(slower, TPOT).metrics
    (interaction,) = found.interactions
    assert set(interaction.factors) == {"kv-offloading-size", "max-num-seqs"}
    assert interaction.change.value == pytest.approx(0.10, abs=0.03)
    assert "kv-offloading-size and max-num-seqs together do +" in found.sentence
    assert "beyond what each does alone" in found.sentence
    offload = found.factors[0]
    assert offload.at_base is not None
    assert offload.at_candidate is not None
    assert offload.at_candidate.value - offload.at_base.value == pytest.approx(0.137, abs=0.06)


def test_memory_that_never_varies_has_exact_effects():
    (found,) = attributed(slower, MEMORY).metrics
    changed = found.factors[1].change
    assert changed is not None
    assert (changed.value, changed.low, changed.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert [f.status for f in found.factors] == ["no effect", "effect", "no effect", "no effect"]


def test_counts_that_may_be_zero_are_compared_by_difference():
    (found,) = attributed(slower, PREEMPTIONS).metrics
    changed = found.factors[0].change
    assert changed is not None
    assert not changed.relative
    assert changed.text == "+3 [+3, +3]"
    assert [f.status for f in found.factors] == ["effect", "no effect", "no effect", "no effect"]


def test_nothing_is_claimed_where_nothing_happens():
    """Forty metrics in ten attributions: with care for the family a false claim is rare."""
    wanted = [Wanted(workload=f"w{n}", metric="tpot_mean", tolerance=0.001) for n in range(10)]
    claims = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        made = [
            Run(round=r, point=p, values={(w.workload, w.metric): float(rng.lognormal(0, 0.02)) for w in wanted})
            for r in range(4)
            for p in range(10)
        ]
        found = attribute(design_for(4), FACTORS, made, wanted)
        claims += any(f.status == "effect" for m in found.metrics for f in m.factors)
    assert claims <= 3


def test_too_much_noise_leaves_things_unclear():
    (found,) = attributed(lambda _on: {"tpot_mean": 0.01}, TPOT, sd=0.3).metrics
    assert {f.status for f in found.factors} == {"unclear"}
    assert "(unclear)" in found.sentence
    assert "no change beyond the tolerance of 5 % shown" in found.sentence


def test_a_metric_nobody_measured_says_so():
    found = attributed(lambda _on: {"tpot_mean": None}, TPOT, THROUGHPUT)
    assert found.metrics == ()
    assert set(found.missing.values()) == {"no launch gave a value"}


def test_a_value_that_is_no_number_is_left_out():
    found = attributed(lambda on: {"tpot_mean": math.nan if on[0] else 0.01}, TPOT)
    assert found.missing == {
        ("burst", "tpot_mean"): "base and candidate need a value each, and one engine must have been launched twice"
    }
