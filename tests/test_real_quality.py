"""Quality on real vLLM servers: equality with transformers, real collapses, real quantized weights. Minutes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from degraded_models import (
    BUNDLED,
    awq_in_wrong_order,
    broken_weights,
    quantize,
    three_bits,
    with_defaults,
    with_thinking_tokens,
)

from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle
from pytest_vllmperf.domain.gate import judge_all
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
from pytest_vllmperf.domain.thresholds import Limit, LimitTable, Match, Outcome, Subject, Thresholds
from pytest_vllmperf.evaluation import Evaluation, evaluate_recorded
from pytest_vllmperf.pool import EnginePool

pytestmark = [
    pytest.mark.real_quality,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

CPU_ARGS = {"enforce-eager": True, "gpu-memory-utilization": 0.2, "max-model-len": 2048}
TASK = replace(BUILT_IN_TASKS["tinymath"], questions=200)
VARIANTS = ("awq", "w4a16", "w8a8", "fp8", "int3", "awq-wrong-order")
SHARED = Path(os.environ.get("VLLMPERF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Directories of published data sets (ifeval/input_data.jsonl, …), which are not part of this repository."""
QUESTIONS = [json.loads(line) for line in (BUNDLED / "test.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------- one launch of each engine


@dataclass
class Served:
    """Everything asked of one launched engine, by name."""

    found: dict[str, Evaluation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def ask(self, name: str, handle: EngineHandle, task: QualityTask, **options: Any) -> None:
        began = time.monotonic()
        self.found[name] = evaluate_recorded(handle, task, **options)
        self.seconds[name] = time.monotonic() - began


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnginePool]:
    from pytest_vllmperf.adapters.environment import gather_environment

    folder = tmp_path_factory.mktemp("models")
    script = quantize()
    models = {
        "base": with_defaults(folder / "base", repetition_penalty=1.3),
        "thinking": with_thinking_tokens(folder / "thinking"),
        "int3": three_bits(folder / "int3"),
        "awq-wrong-order": awq_in_wrong_order(folder / "wrong"),
        "zeros": broken_weights(folder / "zeros", 0.0),
        **{kind: script.variant(kind, folder / kind) for kind in script.FORMATS},
    }
    engines = {
        name: EngineConfig(name=name, model=str(path), served_model_name="tinymath", cpu_args=CPU_ARGS)
        for name, path in models.items()
    }
    # vLLM makes bfloat16 of a float32 checkpoint, transformers does not: the same arithmetic on both sides
    float32 = {**CPU_ARGS, "dtype": "float32", "trust-request-chat-template": True}
    engines["base"] = replace(engines["base"], cpu_args=float32)
    parser = {**CPU_ARGS, "reasoning-parser": "deepseek_r1"}
    engines["thinking"] = replace(engines["thinking"], cpu_args=parser)
    pool = EnginePool(
        engines=engines,
        environment=gather_environment(folder, gpus=(), driver=None),
        directory=tmp_path_factory.mktemp("logs"),
        progress=None,
    )
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def base(pool: EnginePool, store: Path, choices: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    handle = pool.acquire("base")
    served = Served()
    served.ask("standard", handle, TASK, store=store)
    served.ask("one by one", handle, replace(TASK, max_concurrency=1))
    served.ask("completions", handle, replace(TASK, api="completions", canaries=False))
    served.ask("penalty", handle, replace(TASK, sampling={"repetition_penalty": 1.3}))
    stock = replace(BUILT_IN_TASKS["gsm8k"], data=str(BUNDLED / "test.jsonl"), shots=0, questions=60)
    served.ask("stock filter", handle, stock)
    few = replace(TASK, questions=60, kl_texts=0)
    served.ask("cut", handle, replace(few, max_gen_toks=8))
    served.ask("stopped", handle, replace(few, stop=("=",)))
    served.ask("never ends", handle, replace(few, sampling={"ignore_eos": True}))
    served.ask("prompt cut", handle, replace(few, sampling={"truncate_prompt_tokens": 12}))
    served.ask("other name", replace(handle, model_name="tinymath-awq"), few)
    for name, chat_template in WRONG_TEMPLATES.items():
        served.ask(name, handle, replace(few, sampling={"chat_template": chat_template}))
    served.ask("wrong endpoint", handle, replace(few, api="completions", prompt="{{question}}"))
    with answers_cached_by_lm_eval(tmp_path_factory.mktemp("cache") / "answers.db"):
        served.ask("asked", handle, few)
        served.ask("cached", handle, few)
    served.ask("choices", handle, FOUR_CHOICES, data=choices)
    if (SHARED / "ifeval").is_dir():
        served.ask("ifeval", handle, replace(BUILT_IN_TASKS["ifeval"], questions=40, max_gen_toks=64), data=SHARED)
    served.extra["built in"] = local_chat_completions(handle, served.found["standard"])
    yield served
    pool.release("base")


@pytest.fixture(scope="module")
def broken(pool: EnginePool, store: Path, base: Served) -> Served:
    """An engine whose weights give nothing: asked alone, and with the unbroken one as reference."""
    handle = pool.acquire("zeros")
    served = Served()
    served.ask("alone", handle, replace(TASK, questions=40))
    served.ask("compared", handle, replace(TASK, reference="base"), store=store)
    pool.release("zeros")
    return served


@pytest.fixture(scope="module")
def thinking(pool: EnginePool) -> Iterator[Served]:
    handle = pool.acquire("thinking")
    served = Served()
    served.ask("parser", handle, replace(TASK, questions=40, kl_texts=0))
    served.ask("cut", handle, replace(TASK, questions=40, kl_texts=0, max_gen_toks=8))
    yield served
    pool.release("thinking")


@pytest.fixture(scope="module")
def variants(pool: EnginePool, store: Path, base: Served) -> dict[str, Evaluation]:
    found = {}
    for name in VARIANTS:
        handle = pool.acquire(name)
        found[name] = evaluate_recorded(handle, replace(TASK, reference="base"), store=store)
        pool.release(name)
    return found


# ---------------------------------------------------------------------- ways to go wrong

WRONG_TEMPLATES = {
    "template of another model": "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
    "template without the question": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
}


@contextlib.contextmanager
def answers_cached_by_lm_eval(path: Path) -> Iterator[None]:
    """lm-eval's ``use_cache``, which this package never turns on."""
    from lm_eval.api.model import CachingLM

    from pytest_vllmperf.adapters import lm_eval_runner

    score = lm_eval_runner.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_runner, "score", lambda task, model, ids: score(task, CachingLM(model, str(path)), ids))
        yield


# ---------------------------------------------------------------------- the same by other means


def local_chat_completions(handle: EngineHandle, like: Evaluation) -> list[float]:
    """The gated scores of the same questions through lm-eval's own local-chat-completions."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.openai_completions import LocalChatCompletion

    from pytest_vllmperf.adapters.lm_eval_runner import load_task
    from pytest_vllmperf.adapters.lm_eval_runner.quiet import quiet
    from pytest_vllmperf.adapters.question_files import read_questions

    loaded = load_task(TASK, read_questions(str(BUNDLED / "test.jsonl")))
    os.environ["OPENAI_API_KEY"] = handle.api_key or ""
    with quiet():
        model = LocalChatCompletion(
            model=handle.model_name, base_url=f"{handle.base_url}/v1/chat/completions", num_concurrent=1, max_retries=1
        )
        loaded.inner.set_config("num_fewshot", 0)
        # what generation_config.json says is applied to whoever does not say otherwise, lm-eval included
        loaded.inner.set_config("generation_kwargs", {"repetition_penalty": 1.0, "until": ["\n\n"]}, update=True)
        results = evaluate(
            lm=model,
            task_dict={"tasks": {loaded.inner.task_name: loaded.inner}},
            samples={loaded.inner.task_name: list(like.summary.facts["doc_ids"])},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    samples = results["samples"][loaded.inner.task_name]
    return [float(s["exact_match"]) for s in samples if s["filter"] == TASK.filter]


@pytest.fixture(scope="module")
def transformers_model() -> tuple[Any, Any]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(BUNDLED).eval()


FOUR_CHOICES = QualityTask(
    name="four", lm_eval_task="arc_easy", filter="none", metric="acc", oracle=None, shots=0, questions=200, kl_texts=0
)


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 questions with four results each, in ARC's format."""
    folder = tmp_path_factory.mktemp("data") / "arc_easy"
    folder.mkdir()
    rows = []
    for i, row in enumerate(QUESTIONS[:200]):
        right = int(row["answer"].rsplit("#### ", 1)[-1])
        options = [right, right + 1, right + 10, max(0, right - 3)]
        random.Random(i).shuffle(options)
        texts = [f"{row['answer'].split(' = ')[0]} = {option}." for option in options]
        label = "ABCD"[options.index(right)]
        rows.append(
            {"question": row["question"], "choices": {"text": texts, "label": list("ABCD")}, "answerKey": label}
        )
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


# ---------------------------------------------------------------------- must hold


def test_the_standard_suite_takes_a_minute_and_a_half_at_most_and_is_healthy(base):
    found = base.found["standard"].summary
    assert base.seconds["standard"] <= 90
    assert (found.invalid, found.completed) == ((), 200)
    assert {name: rate for name, rate in found.facts["rates"].items() if rate} == {}


def test_answers_equal_transformers_letter_by_letter(base, transformers_model):
    import torch

    tokenizer, model = transformers_model
    found = base.found["one by one"]
    differences = []
    for answer in found.answers:
        messages = [{"role": "user", "content": f"Q: {QUESTIONS[answer.doc_id]['question']}\nA:"}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=64, do_sample=False, num_beams=1)
        said = tokenizer.decode(out[0][ids.shape[1] :], skip_special_tokens=True)
        if said != answer.text:  # greedy, one request at a time: every letter must be the same
            differences.append((answer.doc_id, said, answer.text))
    assert differences == []


def test_lm_evals_own_model_scores_every_question_alike(base):
    assert base.extra["built in"] == list(base.found["one by one"].summary.metrics["accuracy"].samples)


def test_log_likelihood_accuracy_equals_transformers(base, transformers_model):
    import torch

    tokenizer, model = transformers_model
    found = base.found["choices"]
    assert (found.summary.invalid, found.summary.metrics["accuracy"].n) == ((), 200)
    expected = []
    for doc_id, row in enumerate(QUESTIONS[:200]):
        right = int(row["answer"].rsplit("#### ", 1)[-1])
        options = [right, right + 1, right + 10, max(0, right - 3)]
        random.Random(doc_id).shuffle(options)
        context = tokenizer(f"Question: {row['question']}\nAnswer:").input_ids
        likelihoods = []
        for option in options:
            whole = tokenizer(
                f"Question: {row['question']}\nAnswer: {row['answer'].split(' = ')[0]} = {option}."
            ).input_ids
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            likelihoods.append(sum(float(logprobs[i - 1, whole[i]]) for i in range(len(context), len(whole))))
        expected.append(float(options[likelihoods.index(max(likelihoods))] == right))
    assert list(found.summary.metrics["accuracy"].samples) == expected


# ---------------------------------------------------------------------- defaults that distort


def test_sampling_defaults_of_the_model_are_not_measured_and_told(base):
    warnings = "\n".join(base.found["standard"].summary.warnings)
    assert "generation_config.json sets repetition_penalty = 1.3" in warnings
    assert "--generation-config vllm" in warnings
    plain, penalty = (base.found[name].summary.metrics["accuracy"].value for name in ("standard", "penalty"))
    assert penalty < plain


# ---------------------------------------------------------------------- collapses


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stock filter", ("measures the format, not the model", 'filter = "flexible-extract"')),
        ("cut", ("answers were cut", "They were cut at max_gen_toks=8")),
        ("stopped", ("were ended by the stop string '=' within ten tokens",)),
        ("never ends", ("answers were cut", "ignore_eos is set in sampling")),
        ("prompt cut", ("checked prompts did not reach the model whole", ": 12 of ")),
        ("other name", ("the engine lists no model 'tinymath-awq', but 'tinymath'",)),
        ("cached", ("60 questions were to be asked, 0 requests were made and 60 answers scored",)),
        ("template of another model", ("sums of two small numbers came out right", "wrong or missing chat template")),
        ("template without the question", ("are the same text as the answer to another question", "chat template")),
        ("wrong endpoint", ("the wrong endpoint",)),
    ],
)
def test_a_collapse_on_a_healthy_model_is_invalid_with_its_cause(base, name, says):
    told = "\n".join(base.found[name].summary.invalid)
    for part in says:
        assert part in told


def test_weights_that_give_nothing_are_told_by_what_they_write(broken):
    """Qwen's "!!!!": whatever is asked, token 0 is the likeliest."""
    found = broken.found["alone"]
    assert {frozenset(answer.text or "") for answer in found.answers} == {frozenset("!")}
    told = "\n".join(found.summary.invalid)
    assert "answers end in one phrase over and over: '!!!!" in told
    assert "broken weights or kernels" in told


def test_weights_that_give_nothing_fail_where_a_reference_shows_it(broken):
    found = broken.found["compared"]
    assert found.summary.invalid == ()
    assert judged(found)["kl_mean"] is Outcome.FAIL
    assert "the model itself is broken, not the measurement" in "\n".join(found.summary.warnings)


def test_a_reasoning_parser_that_swallows_the_answers_is_named(thinking):
    told = "\n".join(thinking.found["parser"].summary.invalid)
    assert "40 of 40 (100.0%) answers are empty (40 of them null)" in told
    assert "--reasoning-parser" in told


def test_thinking_that_is_cut_is_called_unfinished(thinking):
    assert "were cut while the model was still thinking" in "\n".join(thinking.found["cut"].summary.invalid)


def test_a_base_models_endpoint_works_too(base):
    found = base.found["completions"].summary
    assert (found.invalid, found.completed) == ((), 200)
    assert found.metrics["accuracy"].value > 0.8


# ---------------------------------------------------------------------- quantized weights


def judged(evaluation: Evaluation) -> dict[str, Outcome]:
    """By the limits of the suite: a floor, five points on the same questions, 0.005 nats."""

    def limit(metric: str, **bounds: float) -> Limit:
        given = {"maximum": None, "minimum": None, "tolerance": None, **bounds}
        return Limit(metric=metric, required=False, where="t", text="t", **given)

    limits = {
        "accuracy": limit("accuracy", minimum=0.8, tolerance=0.05),
        "kl_mean": limit("kl_mean", maximum=0.005),
    }
    thresholds = Thresholds(tables=(LimitTable(match=Match(), limits=limits, where="t"),), quality_tasks={})
    summary = evaluation.summary
    subject = Subject(hardware="CPU", model="tinymath", engine=summary.engine, workload=summary.workload)
    return {v.metric: v.outcome for v in judge_all(thresholds, subject, summary, ["accuracy", "kl_mean"])}


@pytest.mark.parametrize("name", ["awq", "w4a16", "w8a8", "fp8"])
def test_a_healthy_variant_is_never_invalid_and_never_fails(variants, name):
    outcomes = judged(variants[name])
    assert variants[name].summary.invalid == ()
    assert not {Outcome.FAIL, Outcome.INVALID} & set(outcomes.values())
    assert outcomes["kl_mean"] is Outcome.PASS


@pytest.mark.parametrize("name", ["int3", "awq-wrong-order"])
def test_a_damaged_variant_fails_by_its_divergence(variants, name):
    outcomes = judged(variants[name])
    assert variants[name].summary.invalid == ()
    assert outcomes["kl_mean"] is Outcome.FAIL
    assert outcomes["accuracy_change"] is Outcome.FAIL


def test_nonsense_of_broken_weights_is_the_models_fault_and_said_so(variants):
    found = variants["awq-wrong-order"].summary
    assert found.metrics["kl_mean"].value > 1
    assert "the model itself is broken, not the measurement" in "\n".join(found.warnings)


# ---------------------------------------------------------------------- instruction following


@pytest.mark.skipif(not (SHARED / "ifeval").is_dir(), reason="the IFEval questions are not here")
def test_ifeval_runs_and_is_shown_against_models_that_know_nothing(base):
    found = base.found["ifeval"].summary
    assert found.metrics["accuracy"].n == 40
    assert set(found.facts["null_scores"]) == {"echo", "empty"}
    assert found.facts["null_scores"]["empty"] == 0.0
    assert {"inst_level_strict_acc", "inst_level_loose_acc"} <= set(found.facts["other_metrics"])
