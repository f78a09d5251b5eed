from dataclasses import replace

import pytest

from pytest_vllmperf.domain.gate import judge_all
from pytest_vllmperf.domain.summary import MetricValue, Summary
from pytest_vllmperf.domain.thresholds import Limit, LimitTable, Match, Outcome, Subject, Thresholds

SUBJECT = Subject(hardware="h", model="m", engine="awq", workload="gsm8k")


def summary(right, questions=200, *, change=(), kl=None, invalid=()):
    answers = (1.0,) * right + (0.0,) * (questions - right)
    metrics = {
        "accuracy": MetricValue(name="accuracy", value=right / questions, n=questions, samples=answers, missing=None)
    }
    if change:
        value = sum(change) / len(change)
        metrics["accuracy_change"] = MetricValue(
            name="accuracy_change", value=value, n=len(change), samples=tuple(change), missing=None
        )
    if kl is not None:
        metrics["kl_mean"] = MetricValue(name="kl_mean", value=kl, n=50, samples=(kl,) * 50, missing=None)
    return Summary(
        engine="awq",
        workload="gsm8k",
        kind="quality",
        model="m",
        description="",
        requests=questions,
        completed=questions,
        failures={},
        duration_s=1.0,
        metrics=metrics,
        invalid=tuple(invalid),
        warnings=(),
        facts={"reference": {"engine": "bf16"}, "broken_kl": 0.2},
    )


def judged(measured, **limits):
    table = LimitTable(match=Match(), limits=limits, where="t")
    thresholds = Thresholds(tables=(table,) if limits else (), quality_tasks={})
    return {v.metric: v for v in judge_all(thresholds, SUBJECT, measured, ["accuracy"])}


def limit(metric, *, minimum=None, maximum=None, tolerance=None, required=False):
    return Limit(
        metric=metric, maximum=maximum, minimum=minimum, tolerance=tolerance, required=required, where="t", text="x"
    )


@pytest.mark.parametrize(
    ("right", "questions", "outcome"),
    [
        (176, 200, Outcome.PASS),
        (162, 200, Outcome.INCONCLUSIVE),
        (140, 200, Outcome.FAIL),
        (27, 30, Outcome.INCONCLUSIVE),
    ],
)
def test_a_floor_is_met_or_missed_by_the_whole_interval(right, questions, outcome):
    verdict = judged(summary(right, questions), accuracy=limit("accuracy", minimum=0.8))["accuracy"]
    assert verdict.outcome is outcome
    assert verdict.interval.low < right / questions < verdict.interval.high


def test_without_a_limit_accuracy_is_shown():
    assert judged(summary(100))["accuracy"].outcome is Outcome.NOT_JUDGED


@pytest.mark.parametrize(
    ("lost", "gained", "outcome"),
    [(3, 3, Outcome.PASS), (24, 2, Outcome.FAIL), (9, 4, Outcome.INCONCLUSIVE)],
)
def test_a_change_against_the_reference_is_always_judged_on_the_same_questions(lost, gained, outcome):
    change = [-1.0] * lost + [1.0] * gained + [0.0] * (200 - lost - gained)
    verdict = judged(summary(170, change=change))["accuracy_change"]
    assert verdict.outcome is outcome
    assert "accuracy against bf16" in verdict.reason
    assert f"({lost} lost, {gained} gained" in verdict.reason
    assert verdict.value == pytest.approx((gained - lost) / 200)
    assert verdict.interval.low < verdict.value


def test_the_tolerance_of_accuracy_is_that_of_its_change():
    change = [-1.0] * 9 + [1.0] * 4 + [0.0] * 187
    wide = judged(summary(170, change=change), accuracy=limit("accuracy", tolerance=0.15))["accuracy_change"]
    assert (wide.outcome, wide.limit.text) == (Outcome.PASS, "within 15 points of bf16")


def test_a_model_far_from_its_reference_fails_without_any_limit_and_a_variant_by_its_own():
    broken = judged(summary(0, kl=4.67))["kl_mean"]
    assert (broken.outcome, broken.built_in) == (Outcome.FAIL, True)
    assert judged(summary(170, kl=0.0145))["kl_mean"].outcome is Outcome.PASS
    strict = judged(summary(170, kl=0.0145), kl_mean=limit("kl_mean", maximum=0.005))["kl_mean"]
    assert (strict.outcome, strict.built_in) == (Outcome.FAIL, False)


def test_an_invalid_evaluation_is_invalid_in_everything():
    verdicts = judged(
        summary(0, change=[0.0] * 200, kl=0.001, invalid=["cut"]), accuracy=limit("accuracy", minimum=0.8)
    )
    assert {v.outcome for v in verdicts.values()} == {Outcome.INVALID}


@pytest.mark.parametrize(
    ("right", "floor", "null", "outcome"),
    [
        (66, 0.33, {"echo": 0.26, "empty": 0.0}, Outcome.INVALID),
        (180, 0.33, {"echo": 0.26, "empty": 0.0}, Outcome.INVALID),
        (20, 0.33, {"echo": 0.26, "empty": 0.0}, Outcome.FAIL),
        (180, 0.36, {"echo": 0.26, "empty": 0.0}, Outcome.PASS),
        (180, 0.30, {"chance": 0.25}, Outcome.INVALID),
        (180, 0.30, {}, Outcome.PASS),
    ],
)
def test_a_floor_that_no_model_at_all_would_nearly_meet_proves_nothing(right, floor, null, outcome):
    measured = summary(right)
    measured = replace(measured, facts={**measured.facts, "null_scores": null})
    verdict = judged(measured, accuracy=limit("accuracy", minimum=floor))["accuracy"]
    assert verdict.outcome is outcome
    if outcome is Outcome.INVALID:
        name, score = max(null.items(), key=lambda item: item[1])
        who = "blind choice" if name == "chance" else "no model at all (echo)"
        assert f"a floor of {floor:.1%} proves nothing: {who} scores {score:.1%}" in verdict.reason
        assert f"({score + 0.1:.1%})" in verdict.reason


def test_a_reference_without_stored_answers_is_told_in_the_change_and_no_pass():
    measured = summary(180)
    metrics = {
        **measured.metrics,
        "accuracy_change": MetricValue(
            name="accuracy_change", value=None, n=0, samples=(), missing="no answers of 'bf16' are stored"
        ),
    }
    measured = replace(measured, metrics=metrics, facts={"not_compared": "bf16"})
    verdict = judged(measured)["accuracy_change"]
    assert verdict.outcome is Outcome.NOT_JUDGED
    assert verdict.reason == "not compared with bf16: no answers of 'bf16' are stored"
    required = judged(measured, accuracy=limit("accuracy", tolerance=0.05, required=True))["accuracy_change"]
    assert required.outcome is Outcome.INCONCLUSIVE
