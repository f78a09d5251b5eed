import pytest
from summaries import load_summary

from pytest_vllmperf.domain.levels import judge_level, undecided
from pytest_vllmperf.domain.replicates import pooled, split_into_rounds
from pytest_vllmperf.domain.summary import MetricValue, Summary
from pytest_vllmperf.domain.thresholds import Limit, Outcome
from pytest_vllmperf.errors import ConfigError


def load(ttft: list[float], *, throughput: float | None = 100.0, memory: float = 1e9, **changes: object) -> Summary:
    scalars = {"output_throughput": throughput, "host_memory_peak": memory, "preemptions": 1.0}
    given = {"requests": len(ttft), "facts": {"tokens": 5}, **changes}
    return load_summary(distributions={"ttft": ttft}, scalars=scalars, **given)  # type: ignore[arg-type]


def answers(right: int, wrong: int, *, other: tuple[float, ...] = ()) -> Summary:
    samples = (1.0,) * right + (0.0,) * wrong + other
    value = sum(samples) / len(samples)
    accuracy = MetricValue(name="accuracy", value=value, n=len(samples), samples=samples, missing=None)
    return load([], kind="quality", metrics={"accuracy": accuracy})


def limit(metric: str, *, most: float | None = None, least: float | None = None, required: bool = False) -> Limit:
    return Limit(
        metric=metric, maximum=most, minimum=least, tolerance=None, required=required, where="here", text="limit"
    )


# ---------------------------------------------------------------------- pooling


def test_pooled_launches_hold_every_sample_and_the_value_of_each() -> None:
    whole = pooled([load([1.0, 2.0]), load([3.0, 4.0], throughput=50.0, memory=2e9)], kind="launch")
    assert whole.metrics["ttft"].samples == (1.0, 2.0, 3.0, 4.0)
    assert whole.metrics["ttft_mean"].value == 2.5
    assert whole.metrics["output_throughput"].value == 75.0
    assert whole.metrics["host_memory_peak"].value == 2e9
    assert whole.metrics["preemptions"].value == 2.0
    assert whole.replicates is not None
    assert whole.replicates.values["ttft_mean"] == (1.5, 3.5)
    assert whole.replicates.samples["ttft_mean"] == 2
    assert (whole.requests, whole.duration_s, whole.facts) == (4, 4.0, {"tokens": 5})


def test_one_broken_launch_breaks_the_whole_and_says_which() -> None:
    whole = pooled([load([1.0]), load([], invalid=("0 of 4 requests completed",))], kind="launch")
    assert whole.invalid == ("launch 2: 0 of 4 requests completed",)
    assert judge_level(whole, "ttft_mean", limit("ttft_mean", most=9.0)).outcome is Outcome.INVALID


def test_a_value_missing_in_one_launch_is_missing_in_the_whole() -> None:
    whole = pooled([load([1.0]), load([1.0], throughput=None)], kind="launch")
    assert whole.metrics["output_throughput"].value is None
    verdict = judge_level(whole, "output_throughput", limit("output_throughput", least=1.0))
    assert verdict.outcome is Outcome.INVALID


def test_nothing_cannot_be_pooled() -> None:
    with pytest.raises(ConfigError, match="nothing to pool"):
        pooled([], kind="round")


def test_an_open_loop_is_divided_in_the_order_of_its_requests() -> None:
    split = split_into_rounds(load([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]), 3)
    assert split.replicates is not None
    assert split.replicates.values["ttft_mean"] == (1.0, 2.0, 3.0)
    assert "output_throughput" not in split.replicates.values


def test_too_few_requests_are_not_divided() -> None:
    assert split_into_rounds(load([1.0, 2.0]), 3).replicates is None


# ---------------------------------------------------------------------- judging


def test_a_pass_from_one_launch_says_so() -> None:
    verdict = judge_level(load([1.0, 1.0]), "ttft_mean", limit("ttft_mean", most=2.0))
    assert (verdict.outcome, verdict.word, verdict.interval) == (Outcome.PASS, "PASS (1 launch)", None)


def test_rounds_give_an_interval_that_must_meet_the_limit_whole() -> None:
    rounds = pooled([load([1.0] * 4), load([1.1] * 4), load([1.2] * 4)], kind="round")
    passed = judge_level(rounds, "ttft_mean", limit("ttft_mean", most=1.5))
    doubtful = judge_level(rounds, "ttft_mean", limit("ttft_mean", most=1.15))
    failed = judge_level(rounds, "ttft_mean", limit("ttft_mean", most=0.8))
    assert (passed.word, doubtful.outcome, failed.outcome) == ("PASS (1 launch)", Outcome.INCONCLUSIVE, Outcome.FAIL)
    assert passed.interval is not None
    assert passed.interval.low is not None
    assert passed.interval.high is not None
    assert passed.interval.low < 1.1 < passed.interval.high < 1.5


def test_launches_are_judged_at_their_looks_only() -> None:
    launches = [load([x] * 4) for x in (1.0, 1.1, 1.2, 1.0, 1.1)]
    at_three = judge_level(pooled(launches[:3], kind="launch"), "ttft_mean", limit("ttft_mean", most=1.3), launches=5)
    at_four = judge_level(pooled(launches[:4], kind="launch"), "ttft_mean", limit("ttft_mean", most=1.3), launches=5)
    at_five = judge_level(pooled(launches, kind="launch"), "ttft_mean", limit("ttft_mean", most=1.3), launches=5)
    assert at_four.outcome is Outcome.INCONCLUSIVE
    assert (at_five.outcome, at_five.word, at_five.launches) == (Outcome.PASS, "PASS", 5)
    assert undecided(at_three, launches=5) == (at_three.outcome is Outcome.INCONCLUSIVE)
    assert not undecided(at_five, launches=5)


def test_memory_must_fit_at_every_launch() -> None:
    launches = pooled([load([1.0]), load([1.0], memory=3e9), load([1.0])], kind="launch")
    assert judge_level(launches, "host_memory_peak", limit("host_memory_peak", most=2e9)).outcome is Outcome.FAIL


def test_a_p99_never_passes_on_fewer_than_459_requests() -> None:
    few = pooled([load([1.0] * 458)] * 5, kind="round")
    verdict = judge_level(few, "ttft_p99", limit("ttft_p99", most=2.0))
    assert verdict.interval is None  # 458 in each round: the value over all of them is all there is
    single = judge_level(load([1.0] * 458), "ttft_p99", limit("ttft_p99", most=2.0))
    assert single.outcome is Outcome.NOT_JUDGED
    assert single.reason == "TTFT p99 not judged, n = 458 (p99 needs 459)"
    needed = judge_level(load([1.0] * 458), "ttft_p99", limit("ttft_p99", most=2.0, required=True))
    assert needed.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("right", "wrong", "outcome"),
    [(190, 10, "PASS"), (162, 38, "INCONCLUSIVE"), (120, 80, "FAIL"), (27, 3, "INCONCLUSIVE")],
)
def test_answers_are_judged_by_exact_bounds(right: int, wrong: int, outcome: str) -> None:
    verdict = judge_level(answers(right, wrong), "accuracy", limit("accuracy", least=0.8))
    assert str(verdict.outcome) == outcome
    assert verdict.interval is not None
    assert verdict.interval.replicate == "question"
    assert verdict.word == outcome  # answers do not change from launch to launch as times do


def test_scores_between_right_and_wrong_have_bounds_too() -> None:
    verdict = judge_level(answers(90, 10, other=(0.5,) * 10), "accuracy", limit("accuracy", least=0.7))
    assert verdict.outcome is Outcome.PASS
    assert verdict.interval is not None
    assert verdict.interval.low is not None
    assert 0.7 < verdict.interval.low < 0.86


def test_without_a_limit_it_is_only_shown() -> None:
    assert judge_level(load([1.0]), "ttft_mean", None).outcome is Outcome.NOT_JUDGED
