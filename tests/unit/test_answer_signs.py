import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.answer_signs import early_stops, identical, looping, misread, stated_number
from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.records import RequestOutcome


def answer(doc_id, text, **changes):
    given_fields = {
        "outcome": RequestOutcome.SUCCESS,
        "status": 200,
        "reasoning_chars": 0,
        "finish_reason": "stop",
        "stop_reason": None,
        "input_tokens": 5,
        "output_tokens": 9,
        "dispatched_ns": 0,
        "ended_ns": 1,
        "detail": None,
    }
    return Answer(doc_id=doc_id, text=text, **{**given_fields, **changes})


def wrong(doc_id, target, extracted="[invalid]"):
    return Score(doc_id=doc_id, filter="f", extracted=extracted, value=0.0, target=target)


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("18", 18.0),
        ("1,225", 1225.0),
        ("3 * 6 = 18.\n#### 18", 18.0),
        ("-5", -5.0),
        ("$20.", 20.0),
        ("(A)", None),
        ("", None),
    ],
)
def test_the_result_of_a_right_answer_is_read_as_a_number(target, number):
    assert stated_number(target) == number


@pytest.mark.parametrize(
    "text",
    [
        "The total is $18.00.",
        "It is 18 in total (for 365 days).",
        "The answer is 18...",
        r"Therefore \[ \boxed{18} \]",
        "**18**",
        "9 + 9 = 18. So there are 18 boxes. They go to 5 shops.",
        "The sum is\n9 + 9 = 18",
    ],
)
def test_an_answer_that_states_the_right_number_in_another_form_is_misread(text):
    assert [a.doc_id for a in misread([answer(3, text)], [wrong(3, "#### 18")])] == [3]


@pytest.mark.parametrize(
    "text", ["It is 180.", "18 boxes. " + "And so on. " * 20 + "It is 7.", "9 + 9 = 18. It is $20.", "", "eighteen"]
)
def test_a_number_that_is_not_there_or_only_in_the_working_is_not(text):
    assert misread([answer(3, text)], [wrong(3, "18")]) == []


def test_a_right_answer_is_never_misread():
    score = Score(doc_id=3, filter="f", extracted="18", value=1.0, target="18")
    assert misread([answer(3, "18")], [score]) == []


def test_equal_answers_count_where_the_right_results_differ():
    answers = [answer(i, "The answer is 7.") for i in range(3)]
    assert len(identical(answers, [wrong(0, "7"), wrong(1, "8"), wrong(2, "7")])) == 3
    assert identical(answers, [wrong(0, "7"), wrong(1, "#### 7"), wrong(2, "7"), wrong(3, "9")]) == []


def test_where_all_targets_are_one_any_two_equal_answers_count():
    assert (
        len(identical([answer(0, "Sure."), answer(1, "Sure."), answer(2, "No.")], [wrong(i, "0") for i in range(3)]))
        == 2
    )


def test_empty_answers_are_not_called_identical():
    assert identical([answer(0, ""), answer(1, " ")], [wrong(0, "1"), wrong(1, "2")]) == []


@given(
    phrase=st.text("abcxyz!?.,#{}0123", min_size=1, max_size=40),
    times=st.integers(45, 60),
)
def test_any_phrase_repeated_to_the_end_is_a_loop(phrase, times):
    assert len(looping([answer(0, "Well. " + phrase * times)])) == 1


@pytest.mark.parametrize(
    "text", ["", "1 + 1 = 2. The answer is 2.", "no no no no no", "| a | b |\n|---|---|\n| 1 | 2 |", "a" * 30]
)
def test_an_ordinary_answer_is_no_loop(text):
    assert looping([answer(0, text)]) == []


def test_a_stop_string_is_early_within_ten_tokens_and_before_a_result_only():
    answers = [
        answer(0, "33 ", stop_reason="+", output_tokens=3),
        answer(1, "33 ", stop_reason="+", output_tokens=11),
        answer(2, "33 ", stop_reason=7, output_tokens=3),
        answer(3, "18", stop_reason="\n", output_tokens=2),
    ]
    scores = [wrong(0, "1"), wrong(1, "1"), wrong(2, "1"), wrong(3, "1", extracted="18")]
    assert [a.doc_id for a in early_stops(answers, scores)] == [0]
