import json
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from answering import MODEL, engine
from chat_server import Reply, chat_server

from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
from pytest_vllmperf.errors import TaskError
from pytest_vllmperf.evaluation import check_task, evaluate, evaluate_recorded

QUESTIONS = [json.loads(line) for line in (MODEL / "test.jsonl").read_text().splitlines()]
GOLD = {row["question"]: row["answer"].rsplit("#### ", 1)[-1] for row in QUESTIONS}
TINYMATH = replace(BUILT_IN_TASKS["tinymath"], questions=40, canaries=False, repeats=0)
STOCK = QualityTask(
    name="gsm8k", lm_eval_task="gsm8k", data=str(MODEL / "test.jsonl"), questions=40, shots=0, canaries=False, repeats=0
)


def gold(prompt):
    """The right result of a prompt, whichever task wrapped the question."""
    (question,) = re.findall(r"^(?:Q: |Question: )?(.*?)(?:\nA:|\nAnswer:)?$", prompt, flags=re.DOTALL)
    return GOLD[question]


def asked(reply, task, **options):
    """Evaluate ``task`` against a model that answers ``reply(result)``."""

    def answer(prompt):
        made = reply(gold(prompt))
        return made if isinstance(made, Reply) else Reply(content=made)

    with chat_server(answer) as server:
        return evaluate(engine(server.url), task, **options)


def test_a_perfect_model_scores_one_and_nothing_is_invalid():
    summary = asked(lambda result: f"So it is. The answer is {result}.", TINYMATH)
    accuracy = summary.metrics["accuracy"]
    assert (accuracy.value, accuracy.n, accuracy.samples) == (1.0, 40, (1.0,) * 40)
    assert summary.invalid == ()
    assert (summary.kind, summary.workload, summary.engine, summary.model) == (
        "quality",
        "tinymath",
        "base",
        "tinymath",
    )
    assert (summary.requests, summary.completed, summary.failures) == (40, 40, {})
    assert summary.metrics["error_rate"].value == 0.0
    assert summary.facts["filters"] == {"strict-match": 1.0, "flexible-extract": 1.0}
    assert summary.facts["gated_filter"] == "strict-match"
    assert set(summary.facts["rates"].values()) == {0.0}
    assert summary.facts["input_tokens"] == 280
    json.dumps(dict(summary.facts))


def test_a_bad_model_that_answers_in_form_fails_honestly_and_is_not_invalid():
    summary = asked(lambda result: f"The answer is {int(result) + 1000}.", TINYMATH)
    assert summary.metrics["accuracy"].value == 0.0
    assert summary.invalid == ()


def test_the_samples_follow_the_drawn_questions():
    """Right for even results only: each sample must be that of the question with the same id."""
    right = {"even": lambda result: int(result) % 2 == 0}["even"]
    summary = asked(lambda result: f"The answer is {result if right(result) else 'none'}", TINYMATH)
    expected = tuple(float(right(GOLD[QUESTIONS[i]["question"]])) for i in summary.facts["doc_ids"])
    assert summary.metrics["accuracy"].samples == expected
    assert 0 < sum(expected) < 40


def test_the_drawn_questions_are_asked_and_no_others_the_same_on_every_run():
    with chat_server(lambda _: Reply()) as server:
        first, second = (evaluate_recorded(engine(server.url), TINYMATH) for _ in range(2))
    prompts = [request["messages"][-1]["content"] for request in server.requests]
    assert sorted(prompts[:40]) == sorted(prompts[40:])
    drawn = first.summary.facts["doc_ids"]
    assert drawn != list(range(40))
    assert set(prompts) == {f"Q: {QUESTIONS[i]['question']}\nA:" for i in drawn}
    assert [a.doc_id for a in first.answers] == [a.doc_id for a in second.answers] == drawn


def test_the_zero_percent_of_a_filter_that_does_not_fit_is_invalid_and_says_why():
    """The seed's report: GSM8K 0 %, read as "AWQ destroys math" by a model that answered right."""
    summary = asked(lambda result: f"First this, then that. The answer is {result}.", STOCK)
    assert summary.metrics["accuracy"].value == 0.0
    assert summary.facts["filters"] == {"strict-match": 0.0, "flexible-extract": 1.0}
    assert "finds no answer in 40 of 40 (100.0%) answers" in summary.invalid[0]
    assert "A score of 0.0% here measures the format, not the model" in summary.invalid[0]
    assert 'filter = "flexible-extract"' in summary.invalid[0]
    assert "the filters disagree by 100.0%" in summary.invalid[1]


def test_the_same_answers_score_by_the_filter_that_fits():
    summary = asked(lambda result: f"The answer is {result}.", replace(STOCK, filter="flexible-extract"))
    assert summary.metrics["accuracy"].value == 1.0
    assert [r for r in summary.invalid if "finds no answer" in r] == []


def test_lm_evals_own_task_scores_its_own_format():
    summary = asked(lambda result: f"Thus.\n#### {result}", STOCK)
    assert (summary.metrics["accuracy"].value, summary.invalid) == (1.0, ())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(content=None, reasoning="long thoughts"), "without --reasoning-parser"),
        (Reply(content=""), "40 of 40 (100.0%) answers are empty"),
        (Reply(content="1 + 1 = ", finish_reason="length"), "40 of 40 (100.0%) answers were cut"),
        (Reply(status=404, raw='{"error": "The model does not exist"}'), "40 of 40 (100.0%) requests failed"),
        (Reply(content="!" * 300), "answers end in one phrase over and over"),
    ],
)
def test_a_collapse_of_the_measurement_is_invalid_with_its_cause(reply, reason):
    """C06."""
    summary = asked(lambda _: reply, TINYMATH)
    assert summary.metrics["accuracy"].value == 0.0
    assert reason in summary.invalid[0]


def test_a_task_that_cannot_read_right_answers_asks_nothing():
    task = replace(TINYMATH, answer_pattern=r"#### ([0-9]+)")
    with chat_server(lambda _: Reply()) as server:
        summary = evaluate(engine(server.url), task)
    assert server.requests == []
    assert "right answers score 0.0% through the filter 'strict-match'" in summary.invalid[0]
    assert summary.metrics["accuracy"].value is None
    assert summary.metrics["accuracy"].missing.startswith("no question was asked")


def test_every_bundled_question_reads_right_through_the_bundled_task():
    summary = asked(lambda result: f"The answer is {result}.", replace(TINYMATH, questions=None))
    assert summary.metrics["accuracy"].n == len(QUESTIONS) == 500
    assert (summary.metrics["accuracy"].value, summary.invalid, summary.warnings) == (1.0, (), ())


def test_progress_is_told_for_each_answer():
    told = []
    asked(lambda _: "The answer is 1.", TINYMATH, progress=lambda done, count: told.append((done, count)))
    assert told == [(i, 40) for i in range(1, 41)]


def test_few_questions_and_borrowed_examples_are_told():
    summary = asked(lambda result: f"#### {result}", replace(STOCK, shots=2))
    assert summary.warnings == (
        f"{MODEL / 'test.jsonl'} has no train.jsonl: the worked examples come from other questions of the test itself",
        "40 questions leave a score uncertain by up to 16% either way",
    )


def test_worked_examples_are_sent_as_turns_of_the_conversation():
    with chat_server(lambda _: Reply(content="#### 1")) as server:
        evaluate(engine(server.url), replace(STOCK, questions=3, shots=2))
    roles = [message["role"] for message in server.requests[0]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert "####" in server.requests[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (replace(TINYMATH, questions=501), r"quality task 'tinymath': questions=501 is more than the 500 there are"),
        (replace(TINYMATH, data="/nowhere.jsonl"), r"/nowhere\.jsonl: no such file"),
        (replace(TINYMATH, filter="loose"), r"filter 'loose' is unknown"),
        (replace(TINYMATH, oracle="{{solution.text}}"), r"oracle='{{solution.text}}' cannot be filled in"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_before_the_first_request(task, message):
    with chat_server(lambda _: Reply()) as server, pytest.raises(TaskError, match=message):
        evaluate(engine(server.url), task)
    assert server.requests == []
    with pytest.raises(TaskError, match=message):  # and without any server
        check_task(engine("").config, task, None)


def test_questions_that_come_with_the_model_need_a_model_directory():
    with pytest.raises(TaskError, match=r"engine 'base' serves 'Qwen/Qwen2.5-7B', which is no directory here"):
        evaluate(engine("http://127.0.0.1:9", model="Qwen/Qwen2.5-7B"), TINYMATH)


def test_against_the_fake_engine_in_a_process_of_its_own(fake_command, tmp_path):
    log_file = tmp_path / "log"
    with chat_server(lambda _: Reply()) as free:  # a port nobody else will be given in this moment
        port = int(free.url.rsplit(":", 1)[-1])
    command = [*fake_command, "--model", "m", "--port", str(port), "--served-model-name", "tinymath"]
    with (
        log_file.open("w") as log,
        subprocess.Popen(
            [*command, "--fake-answer", "The answer is 65."],
            stdout=log,
            stderr=log,
            env={"PATH": "", "VLLM_API_KEY": "secret"},
        ) as process,
    ):
        try:
            wait_until_listening(port, process)
            summary = evaluate(engine(f"http://127.0.0.1:{port}"), TINYMATH)
        finally:
            process.terminate()
    assert summary.completed == 40
    assert "answers are the same text as the answer to another question" in summary.invalid[0]
    right = sum(GOLD[QUESTIONS[i]["question"]] == "65" for i in summary.facts["doc_ids"])
    assert summary.metrics["accuracy"].value == right / 40


def wait_until_listening(port, process):
    deadline = time.monotonic() + 20
    while not listening(port):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_importing_evaluation_loads_neither_lm_eval_nor_httpx():
    """Every pytest start pays for what the plugin imports."""
    code = "import sys, pytest_vllmperf.evaluation; print({'lm_eval', 'httpx', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
