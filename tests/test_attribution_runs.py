"""Attribution over made-up launches: the plan, its budget, what failures teach; and once over real processes."""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pytest_vllmperf.attribution import AttributionPlan, rounds_for, take_apart
from pytest_vllmperf.domain.attribution import Wanted
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.factorial import design_for
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import ConfigError, EngineConfigError, EngineExited
from pytest_vllmperf.experiment import Launch, PoolLauncher, measured_on
from pytest_vllmperf.pool import EnginePool

SERVER = Path(__file__).with_name("reference_server.py")
LOAD = Workload(name="tiny", input_tokens=16, output_tokens=8, requests=6, max_concurrency=3)
BASE = EngineConfig(name="base", model="m", args={"seed": 1})
TPOT = Wanted(workload="tiny", metric="tpot_mean", tolerance=0.05)


def summary(engine: str, tpot_s: float) -> Summary:
    return Summary(
        engine=engine,
        workload="tiny",
        kind="load",
        model="m",
        description="",
        requests=6,
        completed=6,
        failures={},
        duration_s=1.0,
        metrics=metric_values(distributions={"tpot": [tpot_s]}, scalars={}),
        invalid=(),
        warnings=(),
        facts={},
    )


class Made:
    """Launches that take ten seconds of a clock of their own and whose TPOT depends on the flags."""

    def __init__(self, level, fails=lambda _args: None, sd: float = 0.005) -> None:
        self.level, self.fails = level, fails
        self.rng = np.random.default_rng(0)
        self.sd = sd
        self.now = 0.0
        self.launched: list[str] = []

    def measure(self, engine, asked):
        assert [what.name for what in asked] == ["tiny"]
        self.now += 10.0
        self.launched.append(engine.name)
        if why := self.fails(engine.args):
            raise EngineExited(f"engine {engine.name!r} ended with exit code 1\n  hint:  {why}")
        tpot = 0.01 * self.level(engine.args) * self.rng.lognormal(0, self.sd)
        return Launch(engine=engine.name, number=1, version=None, summaries={"tiny": summary(engine.name, tpot)})


def plan(candidate, **options) -> AttributionPlan:
    given = {"base": BASE, "candidate": candidate, "asked": (LOAD,), "wanted": (TPOT,), **options}
    return AttributionPlan(**given)


def candidate(**args) -> EngineConfig:
    return EngineConfig(name="candidate", model="m", args={"seed": 1, **args})


def apart(made, asked, lines=None):
    return take_apart(asked, made, progress=(lines if lines is not None else []).append, clock=lambda: made.now)


THREE = candidate(**{"max-num-seqs": 2, "enforce-eager": True, "dtype": "float16"})


def test_the_right_flag_is_named_and_the_plan_is_told_before_it_begins():
    made = Made(lambda args: 1.5 if args.get("max-num-seqs") == 2 else 1.0)
    lines: list[str] = []
    found = apart(made, plan(THREE), lines)
    (metric,) = found.result.metrics
    assert {f.factor: f.status for f in metric.factors} == {
        "max-num-seqs": "effect",
        "enforce-eager": "no effect",
        "dtype": "no effect",
    }
    assert metric.sentence.startswith("max-num-seqs explains +")
    told = next(i for i, line in enumerate(lines) if "plan: " in line)
    assert lines[told] == (
        "base:candidate: plan: one factor at a time, 8 engines × 4 rounds = 32 launches, about 5 min (10 s each)"
    )
    assert "launch 1 of 32" in lines[told + 1]
    assert made.launched[:2] == ["base", "candidate"]
    assert len(made.launched) == 2 + 32


def test_every_engine_is_launched_once_in_each_round_in_another_order():
    made = Made(lambda _args: 1.0)
    apart(made, plan(THREE, rounds=3))
    rounds = [made.launched[2 + 8 * i : 10 + 8 * i] for i in range(3)]
    assert all(len(set(block)) == 8 for block in rounds)
    assert len({tuple(block) for block in rounds}) == 3
    assert "base.with.dtype" in rounds[0]
    assert "candidate.without.dtype" in rounds[0]


def test_a_budget_takes_rounds_away():
    made = Made(lambda _args: 1.0)
    found = apart(made, plan(THREE, budget_s=270))
    assert len(found.runs) == 24
    assert found.warnings == ("the budget holds 3 of 4 rounds: intervals are wider",)
    assert made.now <= 270


def test_a_budget_that_holds_no_plan_is_refused_before_it_begins():
    made = Made(lambda _args: 1.0)
    with pytest.raises(
        ConfigError, match="2 min is too little for 2 rounds of 8 launches, each 10 s: give 3 min at least"
    ):
        apart(made, plan(THREE, budget_s=120))
    assert len(made.launched) == 2


def test_launches_that_take_longer_than_thought_end_with_the_budget():
    made = Made(lambda _args: 1.0)
    slow = made.measure

    def measure(engine, asked):
        made.now += 15.0 if len(made.launched) >= 2 else 0.0
        return slow(engine, asked)

    made.measure = measure
    found = apart(made, plan(THREE, budget_s=340))
    assert made.now <= 340 + 25
    assert "the budget ended the plan after" in found.warnings[-1]


def test_a_failure_with_a_known_hint_joins_the_settings_and_goes_on():
    def fails(args):
        offloads, switched = "kv-offloading-size" in args, "disable-hybrid-kv-cache-manager" in args
        return "needs the hybrid KV cache manager off [hma-connector]" if offloads and not switched else None

    asked = candidate(**{"kv-offloading-size": 4, "disable-hybrid-kv-cache-manager": True, "max-num-seqs": 2})
    made = Made(lambda args: 1.3 if "kv-offloading-size" in args else 1.0, fails)
    found = apart(made, plan(asked))
    assert [f.name for f in found.factors] == ["kv-offloading-size+disable-hybrid-kv-cache-manager", "max-num-seqs"]
    assert "belong together and count as one from here on" in found.warnings[0]
    (metric,) = found.result.metrics
    assert [f.status for f in metric.factors] == ["effect", "no effect"]
    assert len(found.runs) == 16


def test_a_combination_that_cannot_start_is_left_out_and_said():
    made = Made(
        lambda args: 1.3 if args.get("max-num-seqs") == 2 else 1.0,
        lambda args: "who knows" if args.get("max-num-seqs") == 2 and "dtype" not in args else None,
    )
    found = apart(made, plan(THREE))
    assert "is left out: engine 'base.with.max-num-seqs' ended with exit code 1" in " ".join(found.warnings)
    (metric,) = found.result.metrics
    assert metric.factors[0].status == "effect"
    assert metric.factors[0].at_base is None


def test_without_both_ends_there_is_nothing_to_take_apart():
    made = Made(lambda _args: 1.0, lambda args: "broken" if "dtype" in args and "enforce-eager" in args else None)
    with pytest.raises(EngineExited, match="'candidate'"):
        apart(made, plan(THREE))


def test_equal_engines_are_refused():
    with pytest.raises(EngineConfigError, match="do not differ"):
        apart(Made(lambda _args: 1.0), plan(candidate()))


def test_rounds_suit_the_design():
    assert [rounds_for(design_for(n)) for n in (1, 2, 4, 5, 6, 12)] == [8, 4, 4, 4, 2, 2]


def test_on_real_processes_the_planted_flags_are_found(tmp_path):
    """The reference server: flag a makes TPOT half as long again, flag b does nothing."""
    from test_experiment import MACHINE

    effects = ["--effect", "flag=a:tpot*1.5", "--launch-sd", "0.01", "--noise-seed", "7"]
    command = (sys.executable, str(SERVER), "--ttft-ms", "10", "--tpot-ms", "10", *effects)
    command = (*command, "--launch-counter", str(tmp_path / "count"))
    engine = partial(EngineConfig, model="reference", command=command)
    pool = EnginePool(engines={}, environment=MACHINE, directory=tmp_path)
    launcher = PoolLauncher(pool=pool, measure_one=partial(measured_on, progress=lambda _line: None))
    asked = plan(engine(name="candidate", args={"a": True, "b": True}), base=engine(name="base"), rounds=2)
    try:
        found = take_apart(asked, launcher, progress=lambda _line: None)
    finally:
        pool.close()
    (metric,) = found.result.metrics
    a, b = metric.factors
    assert (a.status, b.factor) == ("effect", "b")
    assert a.change is not None
    assert math.isclose(a.change.value, 0.5, abs_tol=0.15)
