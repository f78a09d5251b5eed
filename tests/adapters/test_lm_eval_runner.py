import json
import logging
import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from pytest_vllmperf.adapters.lm_eval_runner import load_task, right_answers, score_texts
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.errors import TaskError

ROWS = {
    "test": [
        {"question": "Tom has 3 boxes of 6. How many?", "answer": "3 * 6 = 18.\n#### 18"},
        {"question": "What is 500 + 725?", "answer": "500 + 725 = 1225.\n#### 1,225"},
        {"question": "What is 2 - 7?", "answer": "2 - 7 = -5.\n#### -5"},
    ]
}
LOCAL = QualityTask(
    name="local", data="q.jsonl", answer_pattern=r"answer is (-?[0-9.,]*[0-9])", oracle="The answer is {{gold}}."
)
GSM8K = QualityTask(name="gsm8k", lm_eval_task="gsm8k", data="somewhere", shots=0)


def read(task, texts):
    """How each filter reads ``texts``: {filter: [(extracted, value), …]}."""
    found = {}
    for score in score_texts(load_task(task, ROWS), dict(enumerate(texts))):
        found.setdefault(score.filter, []).append((score.extracted, score.value))
    return found


def test_the_answer_length_asked_for_replaces_the_tasks_own_and_answers_stay_greedy():
    kwargs = load_task(replace(GSM8K, max_gen_toks=77), ROWS).inner.config.generation_kwargs
    assert (kwargs["max_gen_toks"], kwargs["do_sample"], kwargs["temperature"]) == (77, False, 0.0)
    assert kwargs["until"] == ["Question:", "</s>", "<|im_end|>"]


def test_both_filters_read_every_answer():
    texts = ["The answer is 18.", "It is 1225, clearly", "The answer is 5."]
    assert read(LOCAL, texts) == {
        "strict-match": [("18", 1.0), ("[invalid]", 0.0), ("5", 0.0)],
        "flexible-extract": [("18.", 1.0), ("1225,", 1.0), ("5.", 0.0)],
    }


def test_thousands_separators_and_signs_do_not_matter():
    texts = ["The answer is 18", "The answer is 1,225.", "The answer is -5."]
    assert [value for _, value in read(LOCAL, texts)["strict-match"]] == [1.0, 1.0, 1.0]


def test_lm_evals_own_gsm8k_reads_its_own_format_only():
    found = read(GSM8K, ["It is 18.\n#### 18", "The answer is 1225.", "#### 5"])
    assert found["strict-match"] == [("18", 1.0), ("[invalid]", 0.0), ("5", 0.0)]
    assert [value for _, value in found["flexible-extract"]] == [1.0, 1.0, 0.0]


def test_only_the_chosen_questions_are_scored_under_their_own_ids():
    scores = score_texts(load_task(LOCAL, ROWS), {0: "answer is 18", 2: "answer is -5"})
    assert [(s.doc_id, s.value) for s in scores if s.filter == "strict-match"] == [(0, 1.0), (2, 1.0)]


def test_a_right_answer_is_written_by_the_oracle_template():
    loaded = load_task(LOCAL, ROWS)
    assert right_answers(loaded, [1], LOCAL.oracle) == {1: "The answer is 1,225."}
    assert right_answers(load_task(GSM8K, ROWS), [0], "{{target}}") == {0: "3 * 6 = 18.\n#### 18"}


def test_an_oracle_with_an_unknown_field_says_which_fields_there_are():
    with pytest.raises(
        TaskError, match=r"oracle='\{\{result\}\}' cannot be filled in .*question, answer, target, gold"
    ):
        right_answers(load_task(LOCAL, ROWS), [0], "{{result}}")


def test_worked_examples_come_from_train_and_shots_from_the_task_unless_told():
    rows = {**ROWS, "train": [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(9)]}
    assert load_task(replace(GSM8K, shots=None), rows).shots == 5
    loaded = load_task(replace(LOCAL, shots=2), rows)
    assert loaded.shots == 2
    assert all(doc["question"].startswith("q") for doc in loaded.inner.fewshot_docs())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter": "loose"}, r"filter 'loose' is unknown; this task has strict-match, flexible-extract"),
        ({"shots": 5}, r"shots=5 needs more worked examples than the 3 there are"),
        ({"lm_eval_task": "gsm8k_cot_zeroshot", "shots": 2}, r"without any; use 0"),
    ],
)
def test_what_a_task_does_not_have_is_refused_before_the_first_request(changes, message):
    with pytest.raises(TaskError, match=message):
        load_task(replace(GSM8K, **changes), ROWS)


def test_a_metric_the_task_does_not_compute_is_named_with_those_it_does():
    with pytest.raises(TaskError, match=r"metric 'acc' is not one of this task's: exact_match"):
        load_task(replace(GSM8K, metric="acc"), ROWS)


def test_a_task_of_log_likelihoods_is_loaded_as_one_that_compares():
    rows = {"test": [{"ctx_a": "a", "ctx_b": "b", "activity_label": "x", "endings": ["1", "2"], "label": "0"}]}
    task = QualityTask(name="h", lm_eval_task="hellaswag", data="x", filter="none", metric="acc", shots=0)
    loaded = load_task(task, rows)
    assert (loaded.compares, loaded.size, loaded.filters) == (True, 1, ("none",))


def test_a_task_that_only_measures_perplexity_is_refused_by_its_kind():
    task = QualityTask(name="w", lm_eval_task="wikitext", data="x", filter="none", metric="word_perplexity", shots=0)
    with pytest.raises(TaskError, match=r"is of the kind loglikelihood_rolling; only tasks that generate"):
        load_task(task, {"test": [{"page": "a b c"}]})


def test_rows_without_the_fields_of_the_prompt_are_refused():
    with pytest.raises(TaskError, match=r"lm-eval cannot use data='somewhere' .*'question' is undefined"):
        load_task(GSM8K, {"test": [{"q": "?", "answer": "#### 1"}]})


def test_lm_eval_leaves_logging_random_numbers_warnings_and_the_terminal_alone(capfd):
    def state():
        loggers = {name: logging.getLogger(name).level for name in ("lm_eval", "datasets", "httpx", "huggingface_hub")}
        handlers = list(logging.root.handlers)
        return (
            logging.root.level,
            handlers,
            loggers,
            random.getstate(),
            str(np.random.get_state()),
            warnings.filters[:],
        )

    before = state()
    read(GSM8K, ["#### 18", "a", "b"])
    assert state() == before
    assert capfd.readouterr() == ("", "")


IN_ITS_OWN_PROCESS = """
import json, socket, sys

def refuse(self, address, *rest):
    raise SystemExit(f"the network was asked for {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: refuse(None, a)
from pytest_vllmperf.adapters.lm_eval_runner import load_task, score_texts
from pytest_vllmperf.domain.quality import QualityTask

rows = {"test": [{"question": "q", "answer": "#### 18"}]}
for task in (
    QualityTask(name="gsm8k", lm_eval_task="gsm8k", data="x", shots=0),
    QualityTask(name="own", data="x", answer_pattern="(1.)"),
):
    print(json.dumps([s.value for s in score_texts(load_task(task, rows), {0: "#### 18"})]))
print("torch" in sys.modules, "transformers" in sys.modules)
"""


def test_local_questions_need_no_network_no_torch_and_no_cache_directory(tmp_path):
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_PROCESS], env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[1.0, 1.0]", "[1.0, 1.0]", "False False"]
    assert not list(tmp_path.rglob("*.arrow"))


FROM_THE_HUB = """
from pytest_vllmperf.adapters.lm_eval_runner import load_task
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
load_task(BUILT_IN_TASKS["gsm8k"], None)
"""


def test_without_hub_and_without_data_the_error_says_what_to_give(tmp_path):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FROM_THE_HUB], env=env, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert "TaskUnavailable: quality task 'gsm8k': the questions of 'gsm8k' cannot be had from the hub" in last
    assert "give data=, a directory with test.jsonl and train.jsonl" in last


def test_an_unknown_task_is_told_with_names_that_are_near(monkeypatch):
    import lm_eval.tasks

    class Index:
        """Stands for the index of all 14 000 tasks, which takes twenty seconds to build."""

        def __init__(self, **options):
            self.task_index = self.all_tasks = [] if options else ["gsm8k", "gsm8k_cot"]

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Index)
    with pytest.raises(TaskError, match=r"lm-eval has no task 'gsm8k_cod'; did you mean gsm8k_cot or gsm8k\?"):
        load_task(QualityTask(name="g", lm_eval_task="gsm8k_cod"), None)


def test_json_and_the_scores_agree_on_numbers():
    """Scores travel into JSON reports, so they are plain floats."""
    (first, *_) = score_texts(load_task(LOCAL, ROWS), {0: "answer is 18"})
    assert json.dumps(first.value) == "1.0"
