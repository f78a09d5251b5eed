"""Score answers through a task's own filters: a model's, right ones (the oracle), and those of no model at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_vllmperf.adapters.lm_eval_runner.loading import LoadedTask, gold, template
from pytest_vllmperf.adapters.lm_eval_runner.quiet import quiet
from pytest_vllmperf.domain.answers import Score
from pytest_vllmperf.errors import TaskError

__all__ = ["null_answers", "right_answers", "score", "score_texts", "worked_texts"]


def right_answers(loaded: LoadedTask, doc_ids: Sequence[int], oracle: str) -> dict[int, str]:
    """What a right answer to each question looks like, by the task's ``oracle`` template.

    Raises:
        TaskError: The template names a field the questions do not have.
    """
    render = template(oracle)
    texts: dict[int, str] = {}
    for doc_id in doc_ids:
        inner, doc = loaded.document(doc_id)
        target = str(inner.doc_to_target(doc))
        fields = {**doc, "target": target, "gold": gold({"answer": target, **doc})}
        try:
            texts[doc_id] = render(fields)
        except Exception as error:
            raise TaskError(
                f"quality task {loaded.task.name!r}: oracle={oracle!r} cannot be filled in ({error}); "
                f"fields: {', '.join(fields)}"
            ) from error
    return texts


def null_answers(loaded: LoadedTask, doc_ids: Sequence[int]) -> dict[str, dict[int, str]]:
    """What models answer that know nothing: one repeats the prompt, one says nothing."""
    documents = {doc_id: loaded.document(doc_id) for doc_id in doc_ids}
    return {
        "echo": {doc_id: str(inner.doc_to_text(doc)) for doc_id, (inner, doc) in documents.items()},
        "empty": dict.fromkeys(doc_ids, ""),
    }


def worked_texts(loaded: LoadedTask, doc_ids: Sequence[int]) -> list[tuple[str, str]]:
    """Questions with a right answer written out, without worked examples before them."""
    texts = []
    for doc_id in doc_ids:
        inner, doc = loaded.document(doc_id)
        answer = doc.get("answer") if isinstance(doc.get("answer"), str) else None
        if loaded.compares:
            choices = inner.doc_to_choice(doc)
            place = inner.doc_to_target(doc)
            answer = str(choices[place]) if isinstance(place, int) else str(place)
        if answer is None and loaded.task.oracle is not None:
            answer = right_answers(loaded, [doc_id], loaded.task.oracle)[doc_id]
        if answer:
            texts.append((str(inner.doc_to_text(doc)), answer.split("\n####")[0].strip()))
    return texts


def score_texts(loaded: LoadedTask, texts: Mapping[int, str]) -> tuple[Score, ...]:
    """Score given answers through the task's own filters, without any model."""
    ids = sorted(texts)
    return _evaluate(loaded, _given_answers(loaded, texts, ids), ids, shots=0, chat=True)


def score(loaded: LoadedTask, model: Any, doc_ids: Sequence[int]) -> tuple[Score, ...]:
    """Let ``model`` (an ``lm_eval.api.model.LM``) answer the questions ``doc_ids``, ascending, and score them."""
    chat = loaded.task.api == "chat" and not loaded.compares
    return _evaluate(loaded, model, list(doc_ids), shots=loaded.shots, chat=chat)


def _evaluate(loaded: LoadedTask, model: Any, doc_ids: list[int], *, shots: int, chat: bool) -> tuple[Score, ...]:
    """Run ``lm_eval.evaluator.evaluate``.

    Not ``simple_evaluate``: that also seeds the global random generators and describes the machine, which imports
    torch. ``fewshot_as_multiturn`` is what it would pass.
    """
    places = loaded.places(doc_ids)
    with quiet():
        from lm_eval.evaluator import evaluate

        for inner in loaded.parts.values():
            inner.set_config("num_fewshot", shots)
            inner.set_fewshot_seed(seed=loaded.task.seed)
        results = evaluate(
            lm=model,
            task_dict={"tasks": {name: loaded.parts[name] for name in places}},
            samples=places,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    return tuple(_score(loaded, name, sample) for name in places for sample in results["samples"][name])


def _score(loaded: LoadedTask, part: str, sample: Mapping[str, Any]) -> Score:
    task = loaded.task
    if task.metric not in sample:
        known = ", ".join(sample["metrics"])
        raise TaskError(f"quality task {task.name!r}: metric {task.metric!r} is not one of this task's: {known}")
    responses = sample["filtered_resps"]
    if loaded.compares:  # one (log-likelihood, greedy) for each choice: the likeliest is the answer
        likelihoods = [float(response[0]) for response in responses]
        extracted: Any = likelihoods.index(max(likelihoods))
    else:
        extracted = responses[0]
        while isinstance(extracted, (list, tuple)):
            extracted = extracted[0] if extracted else ""
    return Score(
        doc_id=loaded.doc_id(part, int(sample["doc_id"])),
        filter=str(sample["filter"]),
        extracted=str(extracted),
        value=float(sample[task.metric]),
        target=str(sample["target"]),
        others={name: _values(sample[name]) for name in sample["metrics"] if name != task.metric},
    )


def _values(found: object) -> tuple[float, ...]:
    """A metric of one question: one value, or one for each of its instructions."""
    values = found if isinstance(found, (list, tuple)) else [found]
    return tuple(float(value) for value in values if isinstance(value, (bool, int, float)))


def _given_answers(loaded: LoadedTask, texts: Mapping[int, str], doc_ids: Sequence[int]) -> Any:
    from lm_eval.api.model import LM

    number: Callable[[str, int], int] = loaded.numbering(doc_ids)

    class GivenAnswers(LM):  # type: ignore[misc]  # lm-eval is not typed
        """A model that answers what it was given."""

        tokenizer_name = "given answers"

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [texts[number(request.task_name, request.doc_id)] for request in requests]

        def apply_chat_template(self, chat_history: object, add_generation_prompt: bool = True) -> str:
            return ""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    return GivenAnswers()
