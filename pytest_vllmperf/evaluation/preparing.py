"""Everything between a loaded task and its first question: the engine's abilities, what right answers score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.preflight import CANARIES, canary_reason, listed_reason, oracle_reason
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.quality_report import Asked
from pytest_vllmperf.domain.validity import scores_by_filter
from pytest_vllmperf.errors import TaskUnavailable
from pytest_vllmperf.evaluation.questions import load_questions

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vllmperf.adapters.lm_eval_runner import LoadedTask
    from pytest_vllmperf.adapters.recording_model import Asking, Target
    from pytest_vllmperf.domain.engine import EngineHandle

__all__ = ["Ready", "prepare"]

_GREEDY: Mapping[str, object] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Said with every request to vLLM, which otherwise fills in what the model's generation_config.json says."""
_CANARY_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A task that can be asked, and what came of the checks.

    Args:
        loaded: The task.
        doc_ids: The questions drawn.
        target, asking: Where and how they are asked.
        unreadable: Why it makes no sense to ask at all.
        doubtful: Why what comes back will not be believed.
        null_scores: What models score that know nothing.
        facts, warnings: For the summary.
    """

    loaded: LoadedTask
    doc_ids: tuple[int, ...]
    target: Target
    asking: Asking
    unreadable: tuple[str, ...]
    doubtful: tuple[str, ...]
    null_scores: Mapping[str, float]
    facts: Mapping[str, object]
    warnings: tuple[str, ...]

    def asked(
        self, engine: EngineHandle, prepared_s: float, *, facts: Mapping[str, object], doubts: Sequence[str | None]
    ) -> Asked:
        """What the summary needs of all this, with what was found since."""
        return Asked(
            engine=engine.name,
            model=engine.model_name,
            task=self.loaded.task,
            doc_ids=self.doc_ids,
            available=self.loaded.size,
            shots=self.loaded.shots,
            compares=self.loaded.compares,
            facts={**self.facts, **facts, "prepared_s": round(prepared_s, 3)},
            warnings=(*self.warnings, *(doubt for doubt in doubts if doubt)),
            null_scores=self.null_scores,
        )


def prepare(engine: EngineHandle, task: QualityTask, data: Path | None, called_off: Callable[[], str | None]) -> Ready:
    """Load ``task``, draw its questions and check what can be checked before they are asked.

    ``called_off`` tells why nothing of the engine is to be waited for any longer, None while it lives.

    Raises:
        TaskError: It cannot be asked.
        TaskUnavailable: Its data, or the log-likelihoods it needs, cannot be had here.
    """
    found = load_questions(engine.config, task, data)
    loaded, doc_ids = found.loaded, found.doc_ids
    target, asking = _where_and_how(engine, loaded, called_off)
    unreadable = _unreadable(engine, loaded, doc_ids, target)
    doubtful: tuple[str, ...] = ()
    if not unreadable and task.canaries and not loaded.compares:
        doubtful = _canaries(target, asking, loaded.task.max_gen_toks or 0)
    return Ready(
        loaded=loaded,
        doc_ids=doc_ids,
        target=target,
        asking=asking,
        unreadable=unreadable,
        doubtful=doubtful,
        null_scores={} if unreadable else _null_scores(loaded, doc_ids),
        facts={
            "oracle_checked": task.oracle is not None,
            "canaries_asked": len(CANARIES) if task.canaries and not loaded.compares else 0,
        },
        warnings=(*found.warnings, *_defaults(engine, loaded.task)),
    )


def _where_and_how(
    engine: EngineHandle, loaded: LoadedTask, called_off: Callable[[], str | None]
) -> tuple[Target, Asking]:
    from pytest_vllmperf.adapters.recording_model import Asking, Target

    task = loaded.task
    target = Target(
        base_url=engine.base_url,
        model=engine.model_name,
        api_key=engine.api_key or "",
        max_concurrency=task.max_concurrency,
        timeout_s=task.request_timeout_s,
        called_off=called_off,
    )
    greedy = _GREEDY if engine.version is not None else {}
    sampled = {"temperature": 0, "seed": task.seed, "max_tokens": task.max_gen_toks, **greedy, **task.sampling}
    return target, Asking(api=task.api, fields=sampled, template=task.chat_template_kwargs)


def _unreadable(engine: EngineHandle, loaded: LoadedTask, doc_ids: Sequence[int], target: Target) -> tuple[str, ...]:
    """Reasons not to ask at all.

    Raises:
        TaskUnavailable: The task compares log-likelihoods and the engine gives none.
    """
    from pytest_vllmperf.adapters.lm_eval_runner import right_answers, score_texts
    from pytest_vllmperf.adapters.recording_model import gives_log_likelihoods, listed_models

    task = loaded.task
    listed = listed_models(target)
    reasons = [] if listed is None else [listed_reason(engine.model_name, listed)]
    if loaded.compares and (why := gives_log_likelihoods(target)) is not None:
        raise TaskUnavailable(
            f"quality task {task.name!r} compares log-likelihoods of given answers, and engine {engine.name!r} gives "
            f"none ({why}; llama.cpp's server cannot, vLLM can); choose a task that generates text, such as gsm8k, or "
            'write unavailable = "skip" in the task'
        )
    if task.oracle is not None and not loaded.compares:
        texts = right_answers(loaded, doc_ids, task.oracle)
        reasons.append(oracle_reason(task, score_texts(loaded, texts), texts))
    return tuple(reason for reason in reasons if reason is not None)


def _canaries(target: Target, asking: Asking, longest: int) -> tuple[str, ...]:
    from pytest_vllmperf.adapters.recording_model import ask_prompts

    fields = {**asking.fields, "max_tokens": max(_CANARY_TOKENS, longest)}  # a model that thinks needs its whole length
    prompts = [
        [{"role": "user", "content": question}] if asking.api == "chat" else question for question, _ in CANARIES
    ]
    reason = canary_reason(ask_prompts(target, replace(asking, fields=fields), prompts))
    return () if reason is None else (reason,)


def _null_scores(loaded: LoadedTask, doc_ids: Sequence[int]) -> dict[str, float]:
    """By null model, the share it gets right by the gated filter."""
    from pytest_vllmperf.adapters.lm_eval_runner import null_answers, score_texts

    if loaded.compares:
        counts = [len(inner.doc_to_choice(doc)) for inner, doc in map(loaded.document, doc_ids)]
        return {"chance": sum(1 / count for count in counts) / len(counts)}
    return {
        name: scores_by_filter(score_texts(loaded, texts)).get(loaded.task.filter, 0.0)
        for name, texts in null_answers(loaded, doc_ids).items()
    }


def _defaults(engine: EngineHandle, task: QualityTask) -> tuple[str, ...]:
    """What the engine's users get and the evaluation does not: sampling defaults of generation_config.json."""
    from pytest_vllmperf.adapters.model_files import generation_defaults

    if engine.version is None or str(engine.config.args.get("generation-config", "auto")) == "vllm":
        return ()
    found = {
        name: value
        for name, value in generation_defaults(engine.config.model).items()
        if name in _GREEDY and value != _GREEDY[name] and name not in task.sampling and name.endswith("penalty")
    }
    if not found:
        return ()
    listed = ", ".join(f"{name} = {value}" for name, value in found.items())
    told = (
        f"the model's generation_config.json sets {listed}, which this engine applies to all who do not say "
        "otherwise; the questions were asked without (serve with --generation-config vllm, or write sampling = "
        f"{{ {listed} }} to measure with)"
    )
    return (told,)
