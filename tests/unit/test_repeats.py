from dataclasses import replace

from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.records import RequestOutcome
from pytest_vllmperf.domain.repeats import Repeats, chosen_for_repeats, repeats_of


def answer(doc_id, text="4", outcome=RequestOutcome.SUCCESS):
    return Answer(
        doc_id=doc_id,
        outcome=outcome,
        status=200,
        text=text,
        reasoning_chars=0,
        finish_reason="stop",
        stop_reason=None,
        input_tokens=1,
        output_tokens=1,
        dispatched_ns=0,
        ended_ns=1,
        detail=None,
    )


def score(doc_id, value):
    return Score(doc_id=doc_id, filter="f", extracted="4", value=value)


FAILED = replace(answer(3), outcome=RequestOutcome.TIMEOUT, text=None)


def test_questions_are_spread_over_all_and_the_last_comes_first():
    assert chosen_for_repeats([answer(i) for i in range(40)], 4) == (39, 29, 19, 9)
    assert chosen_for_repeats([answer(i) for i in range(3)], 16) == (2, 1, 0)
    assert chosen_for_repeats([answer(i) for i in range(3)], 0) == ()
    assert chosen_for_repeats([FAILED], 4) == ()


def test_other_words_and_other_scores_are_counted_apart():
    first = [answer(0, "so 4"), answer(1, "so 5"), answer(2, "so 6"), answer(3, "so 7")]
    second = [answer(2, "so 6"), answer(1, "thus 5"), answer(0, "so 9"), FAILED]
    scores = [score(i, 1.0) for i in range(4)]
    found = repeats_of(first, second, scores, [score(0, 0.0), score(1, 1.0), score(2, 1.0)])
    assert found == Repeats(asked=3, reworded=2, rescored=1)
    assert "2 of 3 questions asked twice were answered in other words, 1 with another score" in found.doubt
    assert "VLLM_BATCH_INVARIANT=1" in found.doubt


def test_the_same_words_again_leave_no_doubt():
    assert repeats_of([answer(0)], [answer(0)], [score(0, 1.0)], [score(0, 1.0)]).doubt is None
