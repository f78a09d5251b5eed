import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.answers import Score
from pytest_vllmperf.domain.quality import QualityTask, ValidityLimits
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS, draw_questions, task_with_options
from pytest_vllmperf.errors import TaskError


@given(size=st.integers(1, 500), seed=st.integers(0, 2**32), data=st.data())
def test_a_draw_holds_as_many_different_questions_as_asked_in_ascending_order(size, seed, data):
    questions = data.draw(st.integers(1, size))
    drawn = draw_questions(size, questions, seed)
    assert len(drawn) == len(set(drawn)) == questions
    assert list(drawn) == sorted(drawn)
    assert set(drawn) <= set(range(size))
    assert drawn == draw_questions(size, questions, seed)


def test_a_draw_is_not_the_first_n_and_another_seed_draws_others():
    drawn = draw_questions(500, 50, 0)
    assert drawn != tuple(range(50))
    assert max(drawn) > 400
    assert drawn != draw_questions(500, 50, 1)


def test_the_draw_of_a_seed_never_changes():
    assert draw_questions(500, 5, 0) == (197, 215, 388, 432, 455)


def test_none_asks_all_questions():
    assert draw_questions(3, None, 7) == (0, 1, 2)


def test_asking_more_questions_than_there_are_says_how_many_there_are():
    with pytest.raises(TaskError, match=r"questions=501 is more than the 500 there are"):
        draw_questions(500, 501, 0)


LOCAL = {"name": "t", "data": "q.jsonl", "answer_pattern": "is (.)"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a b"}, r"name 'a b': use letters"),
        ({"questions": 0}, r"questions=0 must be a whole number, 1 or more, or None for all"),
        ({"questions": 2.5}, r"questions=2.5 must be a whole number"),
        ({"shots": -1}, r"shots=-1 must be a whole number, 0 or more, or None for the task's own"),
        ({"max_gen_toks": 0}, r"max_gen_toks=0 must be a whole number, 1 or more, or None for the task's own"),
        ({"api": "chat-completions"}, r"api='chat-completions' must be 'chat' or 'completions'"),
        ({"unavailable": "ignore"}, r"unavailable='ignore' must be 'fail' or 'skip'"),
        ({"sampling": {"stop": ["x"]}}, r"sampling.stop is not free; write stop"),
        ({"sampling": 1}, r"sampling=1 must be a table"),
        ({"stop": "Q:"}, r"stop='Q:' must be a list of strings"),
        ({"stop": [""]}, r"stop=\[''\] must be a list of strings, none of them empty"),
        ({"api": "completions", "chat_template_kwargs": {"a": 1}}, r"completions use no template"),
        ({"max_concurrency": True}, r"max_concurrency=True must be a whole number"),
        ({"request_timeout_s": 0}, r"request_timeout_s=0 must be above 0"),
        ({"filter": ""}, r"filter='' must be a string, not empty"),
        ({"validity": {"empty_rate": 1}}, r"validity=.* must be ValidityLimits"),
        ({"answer_pattern": None}, r"data alone needs answer_pattern"),
        ({"answer_pattern": "is ("}, r"answer_pattern='is \(' is no regular expression"),
        ({"answer_pattern": "is ."}, r"has 0 groups; it must have exactly one"),
        ({"answer_pattern": "(a)(b)"}, r"has 2 groups"),
        ({"data": None, "answer_pattern": None}, r"give lm_eval_task .* or data and answer_pattern"),
        ({"lm_eval_task": "gsm8k"}, r"answer_pattern='is \(\.\)' is for data alone"),
    ],
)
def test_a_task_that_cannot_work_is_refused_with_the_value_and_what_is_allowed(options, message):
    with pytest.raises(TaskError, match=message):
        QualityTask(**{**LOCAL, **options})


@pytest.mark.parametrize("value", [-0.1, 1.5, True, "5 %", float("nan")])
def test_a_validity_limit_is_a_ratio(value):
    with pytest.raises(TaskError, match=r"empty_rate=.* must be a ratio from 0 to 1"):
        ValidityLimits(empty_rate=value)


def test_built_in_tasks_are_gsm8k_and_the_bundled_questions():
    assert set(BUILT_IN_TASKS) == {
        *("gsm8k", "gsm8k_cot", "gsm8k_cot_zeroshot", "gsm8k_cot_llama", "gsm8k_platinum", "ifeval"),
        *("gpqa_main_cot_zeroshot", "tinymath", "mmlu", "hellaswag", "winogrande", "arc_easy", "arc_challenge"),
    }
    assert BUILT_IN_TASKS["gsm8k"].lm_eval_task == "gsm8k"
    assert BUILT_IN_TASKS["tinymath"].describe() == "200 questions, 0 shots, filter strict-match"


def test_options_replace_those_of_a_built_in_task():
    task = task_with_options("gsm8k", {"shots": 0, "filter": "flexible-extract", "validity": {"truncated_rate": 0.2}})
    assert (task.lm_eval_task, task.shots, task.filter) == ("gsm8k", 0, "flexible-extract")
    assert task.validity == ValidityLimits(truncated_rate=0.2)
    assert task.questions == BUILT_IN_TASKS["gsm8k"].questions


def test_a_name_nobody_knows_is_one_of_lm_evals_tasks():
    assert task_with_options("gsm8k_cot", {"questions": 30}).lm_eval_task == "gsm8k_cot"


def test_a_name_nobody_knows_with_data_and_a_pattern_is_a_task_of_its_own():
    task = task_with_options("mine", {"data": "mine.jsonl", "answer_pattern": "is (.)"})
    assert (task.lm_eval_task, task.data) == (None, "mine.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shot": 5}, r"quality\.tasks\.gsm8k: option 'shot' is unknown; allowed: .*shots"),
        ({"name": "other"}, r"option 'name' is unknown"),
        (
            {"validity": {"empty": 0.1}},
            r"quality\.tasks\.gsm8k\.validity: option 'empty' is unknown; allowed: .*empty_rate",
        ),
        ({"validity": 0.1}, r"quality\.tasks\.gsm8k\.validity=0\.1 must be a table"),
        ({"shots": "five"}, r"shots='five' must be a whole number"),
    ],
)
def test_a_wrong_option_names_its_place_in_the_file(options, message):
    with pytest.raises(TaskError, match=message):
        task_with_options("gsm8k", options)


@pytest.mark.parametrize(("extracted", "found"), [("18", True), ("[invalid]", False), ("", False)])
def test_an_extraction_that_failed_counts_as_not_found(extracted, found):
    assert Score(doc_id=0, filter="f", extracted=extracted, value=0.0).found is found
