import pytest

from pytest_vllmperf.domain.comparison import (
    Sides,
    conclusion,
    confirmed,
    judge_questions,
    judge_replicates,
    question_looks,
    shown_change,
)
from pytest_vllmperf.domain.comparison_section import comparison_sections
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Verdict
from pytest_vllmperf.errors import ConfigError

SIDES = Sides(baseline="baseline", candidate="max-perf", workload="heavy")


def allowed(metric: str, tolerance: float = 0.05, *, required: bool = False) -> Limit:
    text = f"within {tolerance:.0%}"
    return Limit(
        metric=metric, maximum=None, minimum=None, tolerance=tolerance, required=required, where="here", text=text
    )


def judged(metric: str, baseline: list[float | None], candidate: list[float | None], **kwargs: object) -> Verdict:
    return judge_replicates(SIDES, allowed(metric), baseline, candidate, **kwargs).verdict  # type: ignore[arg-type]


STEADY = [100.0, 101.0, 99.0, 100.0]


@pytest.mark.parametrize(
    ("metric", "factor", "outcome"),
    [
        ("output_throughput", 0.7, "FAIL"),
        ("output_throughput", 1.3, "PASS"),
        ("ttft_mean", 1.3, "FAIL"),
        ("ttft_mean", 0.7, "PASS"),
        ("host_memory_peak", 1.0, "PASS"),
    ],
)
def test_direction_comes_from_the_catalogue(metric: str, factor: float, outcome: str) -> None:
    candidate = [x * factor * wobble for x, wobble in zip(STEADY, (1.0, 1.001, 0.999, 1.0), strict=True)]
    verdict = judged(metric, list(STEADY), list(candidate), samples=1000)
    assert str(verdict.outcome) == outcome
    assert verdict.change == pytest.approx(factor - 1, abs=0.01)
    assert (verdict.engine, verdict.against, verdict.workload) == ("max-perf", "baseline", "heavy")


def test_before_the_first_look_it_asks_for_more() -> None:
    found = judge_replicates(SIDES, allowed("ttft_mean"), [1.0, 1.0], [1.0, 1.0], samples=10)
    assert (found.verdict.outcome, found.next_look) == (Outcome.INCONCLUSIVE, 4)


def test_a_launch_without_a_value_is_invalid_and_final() -> None:
    found = judge_replicates(SIDES, allowed("ttft_mean"), [1.0, None], [1.0, 1.0], samples=10)
    assert (found.verdict.outcome, found.next_look) == (Outcome.INVALID, None)


def test_a_percentile_of_too_few_requests_is_not_compared() -> None:
    assert judged("ttft_p99", list(STEADY), list(STEADY), samples=50).outcome is Outcome.NOT_JUDGED


@pytest.mark.parametrize(
    ("metric", "baseline", "candidate", "outcome"),
    [
        ("preemptions", [0.0] * 4, [0.0] * 4, "PASS"),
        ("preemptions", [0.0] * 4, [0.0, 0.0, 3.0, 0.0], "FAIL"),
        ("error_rate", [0.0] * 4, [0.0, 0.5, 0.0, 0.0], "FAIL"),
        ("prefix_cache_hit_rate", [0.8] * 4, [0.79] * 4, "PASS"),
        ("prefix_cache_hit_rate", [0.8] * 4, [0.1] * 4, "FAIL"),
        ("kv_cache_usage_peak", [0.8] * 4, [0.1] * 4, "NOT JUDGED"),
    ],
)
def test_counts_and_shares_compare_the_worst_launch(
    metric: str, baseline: list[float | None], candidate: list[float | None], outcome: str
) -> None:
    assert str(judged(metric, baseline, candidate).outcome) == outcome


def test_a_share_missing_in_a_launch_is_invalid() -> None:
    verdict = judged("error_rate", [0.0, None], [0.0, 0.0])
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == "error rate has no value in 1 of 4 launches"


def test_answers_are_paired_question_by_question() -> None:
    looks = question_looks(120)
    assert looks.at == (30, 120)
    same = [1.0] * 100 + [0.0] * 20
    lost = [0.0] * 30 + [1.0] * 70 + [0.0] * 20
    found = judge_questions(SIDES, allowed("accuracy"), same, lost, looks=looks)
    assert found.verdict.outcome is Outcome.FAIL
    assert shown_change(found.verdict).startswith("-25.0 points [≥ -")
    few = judge_questions(SIDES, allowed("accuracy"), same[:30], same[:30], looks=looks)
    assert (few.verdict.outcome, few.next_look) == (Outcome.INCONCLUSIVE, 120)


def test_answers_between_right_and_wrong_cannot_be_paired() -> None:
    with pytest.raises(ConfigError, match=r"an answer scores 0\.5; paired answers are right"):
        judge_questions(SIDES, allowed("accuracy"), [1.0], [0.5], looks=question_looks(30))


def test_only_a_fail_is_confirmed() -> None:
    failed = judged("ttft_mean", list(STEADY), [1.3 * x for x in STEADY], samples=9)
    passed = judged("ttft_mean", list(STEADY), list(STEADY), samples=9)
    assert confirmed(failed, passed).outcome is Outcome.PASS
    assert confirmed(failed, failed).reason.startswith("FAIL confirmed by fresh launches: TTFT mean +30 %")
    with pytest.raises(ConfigError, match="only a FAIL is repeated"):
        confirmed(passed, failed)


def test_the_plain_sentence_has_every_change_with_its_interval_and_the_bad_news_first() -> None:
    wobble = [1.0, 1.002, 0.998, 1.001]
    verdicts = [
        judged("output_throughput", list(STEADY), [71.0 * w for w in wobble], samples=9),
        judged("ttft_mean", list(STEADY), [60.0 * w for w in wobble], samples=9),
    ]
    sentence = conclusion(verdicts)
    assert sentence.startswith(
        "Worse in output throughput at heavy, better in TTFT mean at heavy (heavy: output throughput -29 % [-3"
    )
    (section,) = comparison_sections(verdicts)
    assert (section.kind, section.id) == ("fail", "comparison-baseline-max-perf")
    assert section.sentences == (sentence,)
    assert [row.label for row in section.forests[0].rows] == ["output throughput · heavy", "TTFT mean · heavy"]


def test_a_level_is_no_comparison() -> None:
    level = Verdict(
        outcome=Outcome.PASS, engine="e", workload="w", metric="ttft_mean", value=1.0, n=1, limit=None, reason=""
    )
    assert comparison_sections([level]) == ()
