"""Ask some questions once more: whether greedy answers come again, measured, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.repeats import Repeats, chosen_for_repeats, repeats_of

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.recording_model import RecordingModel
    from pytest_vllmperf.domain.answers import Score
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.quality import QualityTask
    from pytest_vllmperf.evaluation.preparing import Ready

__all__ = ["asked_again", "repeat_facts"]


def asked_again(ready: Ready, model: RecordingModel, scores: Sequence[Score]) -> Repeats | None:
    """Ask ``repeats`` of the questions once more, as before; None where that would tell nothing."""
    from pytest_vllmperf.adapters.lm_eval_runner import score_texts
    from pytest_vllmperf.adapters.recording_model import send_again

    task = ready.loaded.task
    if ready.loaded.compares or task.sampling.get("temperature"):
        return None
    chosen = chosen_for_repeats(model.answers, task.repeats)
    if not chosen:
        return None
    second = send_again(ready.target, ready.asking, {doc_id: model.bodies[doc_id] for doc_id in chosen})
    texts = {answer.doc_id: answer.text or "" for answer in second if answer.succeeded}
    found = score_texts(ready.loaded, texts) if texts else ()
    return repeats_of(model.answers, second, _gated(task, scores), _gated(task, found))


def _gated(task: QualityTask, scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if score.filter == task.filter]


def repeat_facts(engine: EngineHandle, task: QualityTask, repeats: Repeats | None) -> dict[str, object]:
    """Whether the same questions give the same answers again: what was seen, and what the settings promise."""
    told: dict[str, object] = {"repeats": asdict(repeats)} if repeats is not None else {}
    return {**told, "repeatable": _repeatable(engine, task, repeats)}


def _repeatable(engine: EngineHandle, task: QualityTask, repeats: Repeats | None) -> str:
    if task.sampling.get("temperature"):
        return "no: answers are sampled"
    seen = f" ({repeats.asked - repeats.reworded} of {repeats.asked} answers came again)" if repeats else ""
    if task.max_concurrency == 1:
        return f"yes: one request at a time, greedy{seen}"
    if engine.config.env.get("VLLM_BATCH_INVARIANT") == "1":
        return f"yes: batch-invariant kernels, greedy{seen}"
    return (
        "nearly: greedy, but sums depend on what is batched together (VLLM_BATCH_INVARIANT=1 or max_concurrency = 1)"
        f"{seen}"
    )
