import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.preflight import oracle_reason
from pytest_vllmperf.domain.quality import QualityTask, ValidityLimits
from pytest_vllmperf.domain.records import RequestOutcome
from pytest_vllmperf.domain.validity import invalid_reasons, quality_rates, scores_by_filter

TASK = QualityTask(name="t", data="q.jsonl", answer_pattern="is (.)", max_gen_toks=64)


def answer(doc_id, text="The answer is 1.", **changes):
    given = {
        "doc_id": doc_id,
        "outcome": RequestOutcome.SUCCESS,
        "status": 200,
        "text": text,
        "reasoning_chars": 0,
        "finish_reason": "stop",
        "stop_reason": None,
        "input_tokens": 7,
        "output_tokens": 3,
        "dispatched_ns": 0,
        "ended_ns": 1,
        "detail": None,
    }
    return Answer(**{**given, **changes})


def failed(doc_id, status=404, outcome=RequestOutcome.HTTP_ERROR, detail="HTTP 404: no such model"):
    return answer(doc_id, None, status=status, outcome=outcome, detail=detail, finish_reason=None)


def scores(strict, flexible=None):
    """Scores of both filters; a strict None is an answer the filter found nothing in."""
    rows = [
        Score(doc_id=i, filter="strict-match", extracted="[invalid]" if v is None else "1", value=v or 0.0)
        for i, v in enumerate(strict)
    ]
    second = [v or 0.0 for v in strict] if flexible is None else flexible
    return rows + [Score(doc_id=i, filter="flexible-extract", extracted="1", value=v) for i, v in enumerate(second)]


def reasons(answers, found, task=TASK, asked=None):
    return invalid_reasons(task, range(len(answers)) if asked is None else asked, answers, found)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40))
def test_a_low_score_alone_never_makes_a_run_invalid(values):
    answers = [answer(i) for i in range(len(values))]
    assert reasons(answers, scores(values)) == ()
    rates = quality_rates(TASK, answers, scores(values))
    assert (rates.error_rate, rates.empty_rate, rates.truncated_rate, rates.unextracted_rate) == (0, 0, 0, 0)
    assert rates.disagreement == 0


@given(st.integers(1, 60), st.integers(0, 60))
def test_the_truncation_limit_holds_at_exactly_five_percent_and_breaks_above(count, cut):
    cut = min(cut, count)
    answers = [answer(i, finish_reason="length" if i < cut else "stop") for i in range(count)]
    told = reasons(answers, scores([1.0] * count))
    assert bool(told) is (cut / count > 0.05)


def test_one_failed_request_is_enough_and_its_cause_is_named():
    answers = [answer(0), failed(1)]
    (reason,) = reasons(answers, scores([1.0, 0.0]))
    assert "1 of 2 (50.0%) requests failed (1 http_error): HTTP 404: no such model" in reason
    assert "serves the model under another name" in reason


@pytest.mark.parametrize(
    ("status", "outcome", "hint"),
    [
        (401, RequestOutcome.HTTP_ERROR, "the API key is not the engine's"),
        (400, RequestOutcome.HTTP_ERROR, "max-model-len, or the model has no chat template"),
        (None, RequestOutcome.TIMEOUT, "the engine was overloaded or stopped"),
    ],
)
def test_the_status_of_failed_requests_decides_the_likely_cause(status, outcome, hint):
    (reason,) = reasons([failed(0, status, outcome)], scores([0.0]))
    assert hint in reason


def test_a_failed_request_is_not_counted_as_empty_or_unextracted():
    rates = quality_rates(TASK, [answer(0), failed(1)], scores([1.0, None]))
    assert (rates.error_rate, rates.empty_rate, rates.unextracted_rate) == (0.5, 0.0, 0.0)


def test_rates_over_answers_are_missing_when_no_answer_came():
    rates = quality_rates(TASK, [failed(0)], scores([None]))
    assert (rates.error_rate, rates.empty_rate, rates.truncated_rate, rates.unextracted_rate) == (1.0, None, None, None)


def test_null_answers_beside_thinking_point_at_the_reasoning_parser():
    answers = [answer(i, None, reasoning_chars=200) for i in range(4)]
    told = reasons(answers, scores([None] * 4))
    assert "4 of 4 (100.0%) answers are empty (4 of them null)" in told[0]
    assert "--reasoning-parser" in told[0]
    assert "4 of them are empty or cut, see there" in told[1]


def test_empty_answers_after_a_stop_string_point_at_it():
    answers = [answer(i, "", stop_reason="Question:") for i in range(4)]
    assert "a stop string of the task ended them at once" in reasons(answers, scores([None] * 4))[0]


def test_blank_answers_count_as_empty():
    assert "the model ends at once" in reasons([answer(0, " \n")], scores([None]))[0]


def test_truncated_answers_name_the_limit_they_hit():
    told = reasons([answer(i, "1 + 2 = ", finish_reason="length") for i in range(3)], scores([None] * 3))
    assert "3 of 3 (100.0%) answers were cut: '1 + 2 = '" in told[0]
    assert "ended after 3 tokens though max_gen_toks=64 were allowed: by max-model-len" in told[0]
    assert "raise max_gen_toks" in told[0]


def test_zero_percent_by_a_filter_that_does_not_fit_is_invalid_and_names_the_one_that_does():
    answers = [answer(i, f"So the answer is {i}.") for i in range(50)]
    told = reasons(answers, scores([None] * 50, [1.0] * 44 + [0.0] * 6))
    assert "the filter 'strict-match' finds no answer in 50 of 50 (100.0%) answers" in told[0]
    assert "'So the answer is 0.', 'So the answer is 1.', 'So the answer is 2.'" in told[0]
    assert "'So the answer is 3.'" not in told[0]
    assert "A score of 0.0% here measures the format, not the model" in told[0]
    assert "'flexible-extract' scores 88.0%" in told[0]
    assert 'filter = "flexible-extract"' in told[0]
    assert "the filters disagree by 88.0% ('strict-match' 0.0%, 'flexible-extract' 88.0%)" in told[1]


def test_text_after_the_answer_is_told_by_the_other_filter_scoring_less():
    told = reasons([answer(i) for i in range(10)], scores([1.0] * 10, [0.0] * 10))
    assert "a missing stop string, or ignore_eos" in told[0]


@pytest.mark.parametrize("asked", [range(3), range(1, 3)])
def test_answers_that_are_not_those_asked_for_are_told(asked):
    told = reasons([answer(0), answer(1)], scores([1.0, 1.0]), asked=asked)
    assert f"{len(asked)} questions were to be asked, 2 requests were made and 2 answers scored" in told[0]


def test_scores_without_a_single_request_are_told():
    told = invalid_reasons(TASK, range(2), [], scores([1.0, 1.0]))
    assert "0 requests were made and 2 answers scored" in told[0]


def test_limits_can_be_widened():
    task = QualityTask(
        name="t", data="q", answer_pattern="(.)", validity=ValidityLimits(error_rate=0.5, unextracted_rate=1.0)
    )
    assert reasons([answer(0), failed(1)], scores([None, None]), task=task) == ()


def test_a_long_example_is_shortened():
    told = reasons([answer(0, "x" * 5000)], scores([None]))
    assert len(told[0]) < 700


def test_right_answers_that_all_score_leave_nothing_to_say():
    assert oracle_reason(TASK, scores([1.0, 1.0]), {0: "a", 1: "b"}) is None


def test_one_right_answer_that_does_not_score_condemns_the_task():
    told = oracle_reason(TASK, scores([1.0, None]), {0: "a", 1: "#### 18"})
    assert "right answers score 50.0% through the filter 'strict-match' instead of 100%" in told
    assert "'#### 18' was read as '[invalid]'" in told
    assert "no question was asked" in told


def test_a_filter_that_scored_nothing_condemns_the_task_too():
    assert "score 0.0%" in oracle_reason(TASK, [], {})


def test_scores_are_averaged_for_each_filter():
    assert scores_by_filter(scores([1.0, 0.0], [1.0, 1.0])) == {"strict-match": 0.5, "flexible-extract": 1.0}
