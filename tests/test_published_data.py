"""Published question files, where they are at hand, through lm-eval's own tasks without network."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import Reply, chat_server
from test_silent_collapses import engine

from pytest_vllmperf.adapters.lm_eval_runner import load_task, null_answers, right_answers, score_texts
from pytest_vllmperf.adapters.question_files import read_published
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
from pytest_vllmperf.domain.validity import scores_by_filter
from pytest_vllmperf.evaluation import evaluate

DATA = Path(os.environ.get("VLLMPERF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Directories of published data sets (gsm8k/test.jsonl, …), which are not part of this repository."""

pytestmark = pytest.mark.skipif(not (DATA / "ifeval").is_dir(), reason="the published questions are not here")


def loaded(name, **changes):
    task = replace(BUILT_IN_TASKS[name], **changes)
    return load_task(task, read_published(DATA, name))


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_cot", "gsm8k_cot_zeroshot", "gsm8k_cot_llama"])
def test_gold_answers_of_gsm8k_score_one_through_the_gated_filter(name):
    task = loaded(name)
    assert task.size == 1319
    texts = right_answers(task, range(0, task.size, 10), task.task.oracle)
    assert scores_by_filter(score_texts(task, texts))[task.task.filter] == 1.0


def test_ifeval_leaves_out_what_it_cannot_check_here_and_says_so():
    task = loaded("ifeval")
    assert task.size == 541
    missing = task.size - len(task.askable)
    assert (missing, len(task.warnings)) in ((64, 1), (0, 0))  # without NLTK's punkt_tab, and with it


def test_an_echo_of_ifevals_prompts_scores_a_quarter_and_more():
    task = loaded("ifeval")
    ids = list(task.askable)
    scores = {name: score_texts(task, texts) for name, texts in null_answers(task, ids).items()}
    assert scores_by_filter(scores["empty"])["none"] == 0.0
    assert 0.24 < scores_by_filter(scores["echo"])["none"] < 0.28
    strict = [value for score in scores["echo"] for value in score.others["inst_level_strict_acc"]]
    assert 0.34 < sum(strict) / len(strict) < 0.38


def test_a_server_that_echoes_is_recognised_as_one():
    task = replace(BUILT_IN_TASKS["ifeval"], canaries=False, questions=120)
    with chat_server(lambda prompt: Reply(content=prompt)) as server:
        summary = evaluate(engine(server.url), task, data=DATA)
    assert summary.metrics["accuracy"].value == pytest.approx(summary.facts["null_scores"]["echo"])
    assert any("is no better than no model at all (echo)" in warning for warning in summary.warnings)


def test_language_checks_give_the_same_score_again():
    task = loaded("ifeval")
    ids = [i for i in task.askable if "language" in str(task.document(i)[1]["instruction_id_list"])][:10]
    texts = dict.fromkeys(ids, "Dies ist ein Satz. This is a sentence. Ceci est une phrase.")
    first = score_texts(task, texts)
    assert all(score_texts(task, texts) == first for _ in range(3))
