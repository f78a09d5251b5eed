"""In what two engines differ, what belongs together, and the engines in between."""

import pytest

from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.factors import differing, engine_at, learnt
from pytest_vllmperf.errors import EngineConfigError

BASE = EngineConfig(name="base", model="m", args={"max-num-seqs": 64, "enforce-eager": True, "seed": 1})


def engine(name="candidate", **changed):
    args = {"max-num-seqs": 64, "enforce-eager": True, "seed": 1, **changed.pop("args", {})}
    return EngineConfig(name=name, model=changed.pop("model", "m"), args=args, **changed)


def names(factors):
    return [factor.name for factor in factors]


def test_every_flag_that_differs_is_a_factor_and_equal_ones_are_none():
    factors = differing(BASE, engine(args={"max-num-seqs": 2, "enforce-eager": False, "dtype": "float16"}))
    assert names(factors) == ["max-num-seqs", "enforce-eager", "dtype"]
    assert [f.text for f in factors] == [
        "max-num-seqs 64 → 2",
        "enforce-eager on → off",
        "dtype (default) → float16",
    ]


def test_what_makes_the_same_command_line_is_no_difference():
    assert names(differing(BASE, engine(args={"max-num-seqs": "64", "seed": 2}))) == ["seed"]


def test_variables_models_and_interpreters_are_factors_too():
    other = engine(env={"X": "1"}, model="other", python="/envs/b/bin/python")
    assert names(differing(BASE, other)) == ["X", "model", "python"]


def test_settings_that_are_known_to_need_each_other_are_one_factor():
    factors = differing(BASE, engine(args={"kv-offloading-size": 4, "seed": 2, "kv-offloading-backend": "native"}))
    assert names(factors) == ["seed", "kv-offloading-size+kv-offloading-backend"]


def test_declared_groups_are_one_factor():
    other = engine(args={"max-num-seqs": 2, "seed": 2}, together=(("max_num_seqs", "seed"),))
    assert names(differing(BASE, other)) == ["max-num-seqs+seed"]


def test_a_failed_launch_with_a_known_hint_teaches_what_belongs_together():
    base, candidate = BASE, engine(args={"kv-offloading-size": 4, "disable-hybrid-kv-cache-manager": True, "seed": 2})
    factors = differing(base, candidate)
    told = "engine 'x' ended\n  cause: …\n  hint:  X needs the hybrid KV cache manager off [hma-connector]"
    merged = learnt(factors, told)
    assert merged is not None
    assert names(merged) == ["seed", "kv-offloading-size+disable-hybrid-kv-cache-manager"]
    assert learnt(merged, told) is None
    assert learnt(factors, "engine 'x' ended [never-heard-of]") is None


def test_engines_in_between_have_the_settings_of_their_point():
    candidate = engine(args={"max-num-seqs": 2, "seed": None}, env={"X": "1"}, startup_timeout_s=1000.0)
    factors = differing(BASE, candidate)
    assert names(factors) == ["max-num-seqs", "seed", "X"]
    made = engine_at(BASE, candidate, factors, (True, False, True), name="made-up")
    assert dict(made.args) == {"max-num-seqs": 2, "enforce-eager": True, "seed": 1}
    assert dict(made.env) == {"X": "1"}
    assert (made.name, made.startup_timeout_s) == ("made-up", 1000.0)
    ends = [engine_at(BASE, candidate, factors, (on,) * 3, name="end") for on in (False, True)]
    assert dict(ends[0].args) == dict(BASE.args)
    assert dict(ends[1].args) == {"max-num-seqs": 2, "enforce-eager": True}


def test_equal_engines_cannot_be_taken_apart():
    with pytest.raises(EngineConfigError, match="'base' and 'candidate' do not differ in any flag"):
        differing(BASE, engine())


def test_an_engine_that_runs_elsewhere_cannot_be_taken_apart():
    with pytest.raises(EngineConfigError, match="only engines that are launched here"):
        differing(BASE, EngineConfig(name="there", model="m", url="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("together", "told"),
    [("seed", "must be a list of groups"), (("seed",), "must be a list of groups"), ((("sede",),), "does not set; it")],
)
def test_groups_that_cannot_be_are_told(together, told):
    with pytest.raises(EngineConfigError, match=told):
        engine(together=together)
