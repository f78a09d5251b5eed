"""Bisect over made-up launches: gates decide, doubt is repeated, the answer is confirmed or not given."""

import numpy as np
import pytest

from pytest_vllmperf.bisection import BisectPlan, bisect
from pytest_vllmperf.domain.bisection import Step
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.domain.thresholds import Limit
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import EngineExited, EngineUnavailable
from pytest_vllmperf.experiment import Launch

LOAD = Workload(name="tiny", input_tokens=16, output_tokens=8, requests=6, max_concurrency=3)
LIMIT = Limit(
    metric="tpot_mean", maximum=None, minimum=None, tolerance=0.05, required=False, where="test", text="within 5 %"
)
ROW = tuple(EngineConfig(name=f"v{i}", model="m") for i in range(16))


class Made:
    """Launches whose TPOT is slower by ``step`` from the place ``first_bad`` on."""

    def __init__(self, first_bad: int, *, step: float = 0.1, sd: float = 0.0186, seed: int = 0, fails=()) -> None:
        self.first_bad, self.step, self.sd, self.fails = first_bad, step, sd, fails
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def measure(self, engine, asked):
        self.count += 1
        place = int(engine.name[1:])
        if place in self.fails:
            raise EngineExited(f"engine {engine.name!r} ended with exit code 1")
        tpot = 0.01 * (1 + self.step * (place >= self.first_bad)) * self.rng.lognormal(0, self.sd)
        summary = Summary(
            engine=engine.name,
            workload="tiny",
            kind="load",
            model="m",
            description="",
            requests=6,
            completed=6,
            failures={},
            duration_s=1.0,
            metrics=metric_values(distributions={"tpot": [tpot]}, scalars={"error_rate": 0.0}),
            invalid=(),
            warnings=(),
            facts={},
        )
        return Launch(engine=engine.name, number=1, version=None, summaries={"tiny": summary})


def searched(made, lines=None, **options):
    plan = BisectPlan(engines=ROW, asked=(LOAD,), limits={"tiny": (LIMIT,)}, **options)
    return bisect(plan, made, progress=(lines if lines is not None else []).append)


@pytest.mark.parametrize("first_bad", [1, 2, 7, 8, 14, 15])
def test_the_first_bad_environment_is_found_with_its_evidence(first_bad):
    found = searched(Made(first_bad, seed=first_bad))
    assert found.first_bad == f"v{first_bad}"
    assert found.sentence.startswith(f"first bad: v{first_bad} (v{first_bad - 1} is good); TPOT mean")
    assert len(found.trials) <= 6
    last = found.trials[-1]
    if first_bad > 1:
        assert (last.engine, last.against, last.step) == (f"v{first_bad}", f"v{first_bad - 1}", Step.BAD)


def test_a_bad_end_that_is_not_bad_ends_the_search():
    found = searched(Made(99))
    assert found.first_bad is None
    assert found.sentence == "bisect does not know: the bad end does not differ from the good one"
    assert len(found.trials) == 1


def test_environments_that_do_not_start_are_skipped():
    found = searched(Made(8, fails={7, 8, 9}))
    assert found.first_bad is None
    assert found.suspects == ("v7", "v8", "v9", "v10")
    assert found.sentence.endswith("it is one of v7, v8, v9, v10")
    assert {t.engine for t in found.trials if t.step is Step.SKIPPED} == {"v7", "v8", "v9"}


def test_doubt_is_repeated_once_and_then_skipped():
    lines: list[str] = []
    found = searched(Made(8, step=0.04, sd=0.08), lines)
    assert found.first_bad is None
    assert "bisect: v15 against v0 once more" in lines
    assert found.sentence == "bisect does not know: the bad end could not be judged"


def test_what_this_machine_cannot_run_ends_it():
    class Nowhere(Made):
        def measure(self, engine, asked):
            raise EngineUnavailable("no GPU")

    with pytest.raises(EngineUnavailable):
        searched(Nowhere(8))


def test_the_plan_is_told_before_the_first_launch():
    lines: list[str] = []
    searched(Made(8), lines)
    assert lines[0].startswith("bisect: 16 environments, about 6 steps of 8 to 20 launches on tiny;")


def test_right_or_silent_over_seeds():
    """Thirty planted steps of 10 %: never a wrong answer, nearly always the right one."""
    right = wrong = 0
    for seed in range(30):
        first_bad = 1 + seed % 15
        found = searched(Made(first_bad, seed=100 + seed), seed=seed)
        right += found.first_bad == f"v{first_bad}"
        wrong += found.first_bad not in (None, f"v{first_bad}")
    assert right >= 27
    assert wrong == 0
