"""Log-likelihood tasks, stored answers, references and the arbiter, against a scripted server."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace

import pytest
from chat_server import Reply, chat_server, tokens_of
from test_silent_collapses import GOLD, LOCAL, MODEL, engine

from pytest_vllmperf.adapters.answer_store import keep_answers, latest_answers
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.errors import HistoryError, TaskError, TaskUnavailable
from pytest_vllmperf.evaluation import evaluate, evaluate_recorded

ASKED = replace(LOCAL, canaries=False, kl_texts=5)
ARC = QualityTask(name="arc", lm_eval_task="arc_easy", filter="none", metric="acc", oracle=None, shots=0)
COLOURS = ("red", "green", "blue", "grey")


def right(prompt):
    result = GOLD[prompt.removeprefix("Q: ").removesuffix("\nA:")].rpartition("\n#### ")[2]
    return Reply(content=f"It is so. The answer is {result}.", input_tokens=len(tokens_of(prompt)))


def wrong_for_even(prompt):
    reply = right(prompt)
    number = int(str(reply.content).split()[-1].strip("."))
    return reply if number % 2 else replace(reply, content=f"It is so. The answer is {number + 1}.")


def served(reply, task, *, likelihood=lambda ids, i: -0.1, name="base", **options):
    with chat_server(reply, tokenizes=True, likelihood=likelihood) as server:
        base = engine(server.url)
        return evaluate_recorded(replace(base, config=replace(base.config, name=name)), task, **options)


# ---------------------------------------------------------------------- log-likelihoods


@pytest.fixture
def arc(tmp_path):
    """Twelve questions, the answer a colour; ``arc_easy/`` in a directory of data sets."""
    folder = tmp_path / "data" / "arc_easy"
    folder.mkdir(parents=True)
    rows = [
        {
            "question": f"Which colour has number {i}?",
            "choices": {"text": list(COLOURS), "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(12)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def knows_colours(ids, place):
    """High for the right colour after ``number i``, low for the other three, the same for all else."""
    number = next((i for i in range(12) if tokens_of(f" {i}")[0] in ids), 0)
    colours = {tokens_of(f" {colour}")[0]: k for k, colour in enumerate(COLOURS)}
    if ids[place] in colours:
        return -0.1 if colours[ids[place]] == number % 4 else -5.0
    return -1.0


def test_a_task_of_log_likelihoods_is_scored_by_completions_on_the_same_server(arc):
    with chat_server(lambda _: Reply(), tokenizes=True, likelihood=knows_colours) as server:
        summary = evaluate(engine(server.url), ARC, data=arc)
    assert (summary.metrics["accuracy"].value, summary.metrics["accuracy"].n, summary.invalid) == (1.0, 12, ())
    assert set(server.paths) == set()  # nothing was generated
    assert summary.facts["null_scores"] == {"chance": 0.25}
    assert summary.facts["other_metrics"] == {"acc_norm": 1.0}


def test_a_model_that_cannot_tell_scores_chance_and_is_told_so(arc):
    with chat_server(lambda _: Reply(), tokenizes=True, likelihood=lambda ids, i: -1.0) as server:
        summary = evaluate(engine(server.url), replace(ARC, kl_texts=0), data=arc)
    assert summary.metrics["accuracy"].value == 0.25
    assert "25.0% is no better than choosing blindly, which scores 25.0% on these questions" in summary.warnings


@pytest.mark.parametrize(
    ("server", "why"),
    [
        ({"tokenizes": False}, "it has no /tokenize endpoint as vLLM's"),
        ({"tokenizes": True}, "the server returned no log-probabilities of the prompt"),
    ],
)
def test_an_engine_without_log_likelihoods_is_told_before_the_first_request(arc, server, why):
    with chat_server(lambda _: Reply(), **server) as here, pytest.raises(TaskUnavailable, match=why) as told:
        evaluate(engine(here.url), ARC, data=arc)
    assert "llama.cpp's server cannot, vLLM can" in str(told.value)
    assert here.requests == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "arc_easy" / "test.jsonl").write_text('{"question": 1\n'), r"test\.jsonl:1: not JSON"),
        (lambda d: (d / "arc_easy").rename(d / "arc_hard"), r"holds no arc_easy/ .* \(it holds arc_hard\)"),
        (
            lambda d: (d / "arc_easy" / "test.jsonl").write_text('{"question": "a", "x": 1}\n{"question": "b"}\n'),
            r"test\.jsonl: question 2 lacks \['x'\], which question 1 has",
        ),
    ],
)
def test_bad_data_is_told_with_its_place(arc, change, message):
    change(arc)
    with chat_server(lambda _: Reply()) as server, pytest.raises(TaskError, match=message):
        evaluate(engine(server.url), ARC, data=arc)


def test_more_questions_than_there_are_is_an_error_unless_fewer_will_do(arc):
    with chat_server(lambda _: Reply(), tokenizes=True, likelihood=knows_colours) as server:
        with pytest.raises(TaskError, match=r"questions=200 is more than the 12 there are"):
            evaluate(engine(server.url), replace(ARC, questions=200), data=arc)
        summary = evaluate(engine(server.url), replace(ARC, questions=200, fewer_allowed=True), data=arc)
    assert summary.metrics["accuracy"].n == 12


def test_the_tasks_of_a_group_are_numbered_through_and_asked_together(tmp_path):
    for subject, answer in (("anatomy", 1), ("virology", 2)):
        folder = tmp_path / f"mmlu_{subject}"
        folder.mkdir()
        rows = [
            {"question": f"{subject} {i}?", "choices": ["w", "x", "y", "z"], "answer": answer, "subject": subject}
            for i in range(5)
        ]
        for split in ("test", "dev"):
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = QualityTask(name="mmlu", lm_eval_task="mmlu", filter="none", metric="acc", oracle=None, shots=2, kl_texts=0)

    def says_b(ids, place):
        return 0.0 if ids[place] == tokens_of(" B")[0] else -1.0

    with chat_server(lambda _: Reply(), tokenizes=True, likelihood=says_b) as server:
        evaluation = evaluate_recorded(engine(server.url), replace(task, questions=8), data=tmp_path)
    doc_ids = evaluation.summary.facts["doc_ids"]
    assert [a.doc_id for a in evaluation.answers] == doc_ids
    assert evaluation.summary.metrics["accuracy"].samples == tuple(float(i < 5) for i in doc_ids)


# ---------------------------------------------------------------------- stored answers and references


def test_answers_are_kept_compressed_and_found_again(tmp_path):
    evaluation = served(right, ASKED, store=tmp_path)
    (path,) = tmp_path.glob("tinymath/base/*.json.gz")
    assert len(json.loads(gzip.decompress(path.read_bytes()))["answers"]) == 30
    assert latest_answers(tmp_path, engine="base", task="tinymath") == evaluation.stored
    assert latest_answers(tmp_path, engine="other", task="tinymath") is None


def test_a_broken_evaluation_never_becomes_a_reference(tmp_path):
    assert served(lambda _: Reply(content=""), ASKED, store=tmp_path).summary.invalid
    assert list(tmp_path.rglob("*.gz")) == []


def test_a_stored_file_that_cannot_be_read_is_named(tmp_path):
    path = keep_answers(tmp_path, served(right, ASKED).stored)
    path.write_bytes(b"no gzip")
    with pytest.raises(HistoryError, match=r"stored answers cannot be read .*delete the file"):
        latest_answers(tmp_path, engine="base", task="tinymath")


def test_answers_are_paired_with_the_references_on_the_same_questions(tmp_path):
    served(right, ASKED, store=tmp_path, name="bf16")
    summary = served(wrong_for_even, replace(ASKED, reference="bf16"), store=tmp_path, name="awq").summary
    change = summary.metrics["accuracy_change"]
    lost = summary.facts["reference"]["lost"]
    assert (change.n, summary.facts["reference"]["gained"]) == (30, 0)
    assert change.value == pytest.approx(-lost / 30)
    assert 0 < lost < 30
    assert summary.metrics["kl_mean"].value == pytest.approx(0.0, abs=1e-9)
    assert summary.metrics["top1_agreement"].value == 1.0


def test_a_reference_asked_in_another_way_is_not_compared_and_that_is_told(tmp_path):
    served(right, replace(ASKED, max_gen_toks=32), store=tmp_path, name="bf16")
    summary = served(right, replace(ASKED, reference="bf16"), store=tmp_path, name="awq").summary
    assert summary.metrics["accuracy_change"].value is None
    assert any("asked or scored in another way" in warning for warning in summary.warnings)


def test_without_stored_answers_of_the_reference_it_says_what_to_do(tmp_path):
    summary = served(right, replace(ASKED, reference="bf16"), store=tmp_path, name="awq").summary
    assert any("no answers of it are stored; evaluate that engine first" in warning for warning in summary.warnings)
    change = summary.metrics["accuracy_change"]
    assert (change.value, change.missing) == (None, "no answers of 'bf16' are stored")


def test_other_questions_than_the_references_are_left_out_and_counted():
    reference = served(right, ASKED, name="bf16").stored
    summary = served(right, replace(ASKED, seed=1, reference="bf16"), name="awq", reference=reference).summary
    common = summary.metrics["accuracy_change"].n
    assert 0 < common < 30
    assert any(f"{common} of 30 questions were asked of 'bf16' as well" in warning for warning in summary.warnings)


# ---------------------------------------------------------------------- the arbiter


def silent(_):
    return Reply(content="!" * 256, finish_reason="length", output_tokens=64)


def test_unreadable_answers_of_a_model_near_its_reference_are_the_measurements_fault():
    reference = served(right, ASKED, name="bf16").stored
    summary = served(silent, ASKED, name="awq", reference=reference, likelihood=lambda ids, i: -0.11).summary
    assert "the model is not to blame: on 5 given texts its next-token distributions are" in summary.invalid[-1]


def test_unreadable_answers_of_a_model_far_from_its_reference_are_its_own_and_the_score_stands():
    reference = served(right, ASKED, name="bf16").stored
    summary = served(silent, ASKED, name="awq", reference=reference, likelihood=lambda ids, i: -6.0).summary
    assert (summary.invalid, summary.metrics["accuracy"].value) == ((), 0.0)
    assert "the model itself is broken, not the measurement" in " ".join(summary.warnings)
    assert summary.metrics["kl_mean"].value > 0.2
    assert summary.metrics["perplexity"].value == pytest.approx(math.exp(6.0))


def test_the_bundled_questions_are_read_as_their_own_right_answers():
    evaluation = served(right, ASKED)
    assert len(evaluation.stored.read) == 5
    assert evaluation.summary.metrics["perplexity"].value == pytest.approx(math.exp(0.1))
    assert str(MODEL)


# ---------------------------------------------------------------------- the same question twice


def test_questions_are_asked_again_at_the_end_and_come_back_alike():
    with chat_server(right, tokenizes=True) as server:
        summary = evaluate(engine(server.url), replace(ASKED, repeats=5, kl_texts=0))
    assert len(server.requests) == 30 + 5
    assert summary.facts["repeats"] == {"asked": 5, "reworded": 0, "rescored": 0}
    assert summary.facts["repeatable"].startswith("nearly: greedy")
    assert summary.facts["repeatable"].endswith("(5 of 5 answers came again)")


def test_answers_that_change_with_the_batch_are_told(tmp_path):
    seen = set()

    def moody(prompt):
        reply = right(prompt)
        again, _ = prompt in seen, seen.add(prompt)
        return replace(reply, content=f"{reply.content} Or 7.") if again else reply

    with chat_server(moody, tokenizes=True) as server:
        summary = evaluate(engine(server.url), replace(ASKED, repeats=5, kl_texts=0))
    assert summary.facts["repeats"]["reworded"] == 5
    assert any("5 of 5 questions asked twice were answered in other words" in doubt for doubt in summary.warnings)


def test_a_reference_asked_at_another_concurrency_is_told(tmp_path):
    served(right, ASKED, store=tmp_path)
    found = served(right, replace(ASKED, reference="base", max_concurrency=2), store=tmp_path, name="awq").summary
    assert any("asked at max_concurrency = 2, and 'base' at 8" in doubt for doubt in found.warnings)
