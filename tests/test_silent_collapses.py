"""Each way a healthy model silently scores nothing, produced by a server that answers so, and its diagnosis."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from answering import MODEL, engine
from chat_server import Reply, chat_server, tokens_of

from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
from pytest_vllmperf.evaluation import evaluate

ROWS = [json.loads(line) for line in (MODEL / "test.jsonl").read_text().splitlines()]
GOLD = {row["question"]: row["answer"] for row in ROWS}

LOCAL = replace(BUILT_IN_TASKS["tinymath"], questions=30, repeats=0)
STOCK = replace(BUILT_IN_TASKS["gsm8k"], data=str(MODEL / "test.jsonl"), questions=30, shots=0)
COT = replace(BUILT_IN_TASKS["gsm8k_cot"], data=str(MODEL / "test.jsonl"), questions=30)
FLEXIBLE = replace(STOCK, filter="flexible-extract")


@dataclass(frozen=True)
class Collapse:
    """One row: the task, what the server answers to a right ``result`` (with its ``working``), what is said."""

    name: str
    task: Any
    reply: Any
    says: tuple[str, ...]
    score: float | None = 0.0
    server: dict[str, Any] = field(default_factory=dict)


def text(form):
    return lambda working, result: Reply(content=form.format(working=working, result=result))


COLLAPSES = (
    Collapse(
        "the filter reads ####, the model says the answer is",
        STOCK,
        text("{working} The answer is {result}."),
        ("A score of 0.0% here measures the format, not the model", 'filter = "flexible-extract"'),
    ),
    Collapse(
        "no period after the number",
        COT,
        text("{working} The answer is {result}"),
        ("the filters disagree by 100.0%", "'strict-match' read '", "state the right number and are scored wrong"),
    ),
    *(
        Collapse(
            f"the number as {form}",
            task,
            text(form),
            ("state the right number and are scored wrong", "a form the filter does not read"),
            score=None,
        )
        for form, task in (
            ("{working} The answer is ${result}", STOCK),
            ("{working} The answer is **{result}**.", STOCK),
            ("{working} the answer is {result}.", STOCK),
            ("{working} Therefore \\boxed{{{result}}}", STOCK),
            ("{working} The total is {result}.00.", FLEXIBLE),
            ("{working} It is {result} in total (for 365 days).", FLEXIBLE),
            ("{working} It is {result}...", FLEXIBLE),
        )
    ),
    Collapse(
        "a stop string ends the answer at once",
        STOCK,
        lambda *_: Reply(content="Let me restate it. ", stop_reason="Question:", output_tokens=5),
        ("were ended by the stop string 'Question:' within ten tokens", "stop = [ … ]"),
    ),
    Collapse(
        "max_gen_toks too small",
        replace(LOCAL, max_gen_toks=8),
        lambda working, _: Reply(content=working[:9], finish_reason="length", output_tokens=8),
        ("30 of 30 (100.0%) answers were cut", "They were cut at max_gen_toks=8", "raise max_gen_toks"),
    ),
    Collapse(
        "a limit of the server's, below max_gen_toks",
        LOCAL,
        lambda working, _: Reply(content=working[:9], finish_reason="length", output_tokens=8),
        ("They ended after 8 tokens though max_gen_toks=64 were allowed", "max_new_tokens"),
    ),
    Collapse(
        "a reasoning parser that never sees the end of thinking",
        LOCAL,
        lambda working, result: Reply(content=None, reasoning=f"{working} The answer is {result}."),
        ("30 of 30 (100.0%) answers are empty (30 of them null)", "--reasoning-parser"),
    ),
    Collapse(
        "thinking that is cut",
        LOCAL,
        lambda working, _: Reply(content=None, reasoning=working * 9, finish_reason="length", output_tokens=64),
        ("were cut while the model was still thinking", "unfinished, not wrong", "enable_thinking = false"),
    ),
    Collapse(
        "thinking without a parser that is cut",
        LOCAL,
        lambda working, _: Reply(content=f"<think>{working * 9}", finish_reason="length", output_tokens=64),
        ("were cut while the model was still thinking",),
    ),
    Collapse(
        "a prompt cut on the left",
        LOCAL,
        text("{working} The answer is {result}."),
        ("8 of 8 checked prompts did not reach the model whole", ": 7 of ", "the prompt was cut"),
        score=1.0,
        server={"tokenizes": True},
    ),
    Collapse(
        "another server answers on this port",
        LOCAL,
        text("{working} The answer is {result}."),
        ("the engine lists no model 'tinymath', but 'llama'", "no question was asked"),
        score=None,
        server={"models": ["llama"]},
    ),
    Collapse(
        "a cache answers in the model's place",
        LOCAL,
        lambda *_: Reply(content="2 + 2 = 4. The answer is 4."),
        ("answers are the same text as the answer to another question", "a cache or proxy answers in its place"),
        score=None,
    ),
    Collapse(
        "text after the answer",
        LOCAL,
        text("{working} The answer is {result}. Q: What is 9000 + 1? A: 9001"),
        ("the filters disagree by 100.0%", "text follows the answer", "ignore_eos"),
        score=1.0,
    ),
    Collapse(
        "garbage",
        LOCAL,
        lambda *_: Reply(content="!" * 256, finish_reason="length", output_tokens=64),
        ("end in one phrase over and over", "broken weights or kernels", "a reference engine"),
    ),
    Collapse(
        "the wrong endpoint, or a template that does not fit",
        replace(LOCAL, canaries=True),
        lambda *_: Reply(content="Hello! How can I help you?"),
        ("0 of 10 sums of two small numbers came out right", "chat template", "the wrong endpoint (api)"),
    ),
    Collapse(
        "the model's name is not served",
        LOCAL,
        lambda *_: Reply(status=404, raw='{"error": "The model `tinymath` does not exist."}'),
        ("30 of 30 (100.0%) requests failed (", "HTTP 404", "serves the model under another name"),
    ),
    Collapse(
        "no chat template",
        LOCAL,
        lambda *_: Reply(status=400, raw='{"error": "default chat template is no longer allowed"}'),
        ("30 of 30 (100.0%) requests failed", "has no chat template"),
    ),
)


def evaluated(row):
    def answer(prompt):
        question = next((q for q in GOLD if f" {q}" in f" {prompt}"), None)
        if question is None:  # a canary
            numbers = [int(number) for number in re.findall(r"\d+", prompt)]
            return Reply(content=f"{sum(numbers)}") if not row.task.canaries else row.reply("", "")
        working, _, result = GOLD[question].rpartition("\n#### ")
        return row.reply(working.split(" The answer")[0], result)

    with chat_server(answer, **row.server) as server:
        return evaluate(engine(server.url), replace(row.task, canaries="sums" in row.says[0]))


@pytest.mark.parametrize("row", COLLAPSES, ids=lambda row: row.name.replace(" ", "-"))
def test_a_silent_collapse_is_invalid_with_its_cause_and_never_a_low_score(row):
    summary = evaluated(row)
    told = "\n".join(summary.invalid)
    for part in row.says:
        assert part in told
    if row.score is not None:
        assert summary.metrics["accuracy"].value == row.score


def test_a_healthy_run_scores_zero_on_every_rate_and_is_believed():
    row = Collapse("healthy", LOCAL, text("{working} The answer is {result}."), ("",), server={"models": ["tinymath"]})
    summary = evaluated(row)
    assert (summary.invalid, summary.metrics["accuracy"].value) == ((), 1.0)
    assert {name: rate for name, rate in summary.facts["rates"].items() if rate} == {}


def test_prompts_that_arrive_whole_are_counted_and_believed():
    def answer(prompt):
        question = prompt.removeprefix("Q: ").removesuffix("\nA:")
        result = GOLD[question].rpartition("\n#### ")[2]
        return Reply(content=f"It is. The answer is {result}.", input_tokens=len(tokens_of(prompt)))

    with chat_server(answer, tokenizes=True) as server:
        assert evaluate(engine(server.url), replace(LOCAL, canaries=False)).invalid == ()


def test_a_cache_of_lm_evals_that_answers_for_another_model_is_noticed(tmp_path, monkeypatch):
    """lm-eval's ``use_cache`` keys answers by the prompt alone: a model nobody serves "scored" as another one did."""
    from lm_eval.api.model import CachingLM

    from pytest_vllmperf.adapters import lm_eval_runner

    score = lm_eval_runner.score
    cached = str(tmp_path / "answers.db")
    monkeypatch.setattr(
        lm_eval_runner, "score", lambda loaded, model, ids: score(loaded, CachingLM(model, cached), ids)
    )
    good = Collapse("first", LOCAL, text("{working} The answer is {result}."), ("",))
    assert evaluated(good).metrics["accuracy"].value == 1.0
    bad = Collapse("second", LOCAL, text("I do not know."), ("",))
    summary = evaluated(bad)
    assert summary.metrics["accuracy"].value == 1.0  # of the other model
    (reason,) = summary.invalid
    assert "30 questions were to be asked, 0 requests were made and 30 answers scored" in reason
    assert "did not come from this engine" in reason
