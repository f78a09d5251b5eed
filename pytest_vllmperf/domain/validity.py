"""May a score be believed? Rates over the answers, and the reasons a run says nothing about the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.answer_signs import early_stops, identical, looping, misread
from pytest_vllmperf.domain.answers import Answer, Score
from pytest_vllmperf.domain.quality import QualityTask

__all__ = ["QualityRates", "invalid_reasons", "quality_rates", "scores_by_filter"]

_EXAMPLES = 3
_EXAMPLE_CHARS = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRates:
    """How the answers went; every rate is 0 on a healthy run, None where it could not be computed.

    Each is judged against the limit of the same name (:class:`ValidityLimits`), but for ``stop_string_rate``
    (answers ended by a stop string of the task) and ``thinking_cut_rate`` (cut while still thinking, which
    counts as truncated): those are told. ``error_rate`` is over the questions asked, the others over the
    answers received.
    """

    error_rate: float | None
    empty_rate: float | None
    truncated_rate: float | None
    unextracted_rate: float | None
    disagreement: float | None
    early_stop_rate: float | None
    misread_rate: float | None
    identical_rate: float | None
    loop_rate: float | None
    thinking_cut_rate: float | None
    stop_string_rate: float | None


def scores_by_filter(scores: Sequence[Score]) -> dict[str, float]:
    """Mean score of each filter, in the order the filters first appear."""
    values: dict[str, list[float]] = {}
    for score in scores:
        values.setdefault(score.filter, []).append(score.value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def quality_rates(task: QualityTask, answers: Sequence[Answer], scores: Sequence[Score]) -> QualityRates:
    """Compute every rate of one run."""
    done = [a for a in answers if a.succeeded]
    gated = [s for s in scores if s.filter == task.filter]
    return QualityRates(
        error_rate=_share(len(answers) - len(done), len(answers)),
        empty_rate=_share(len(_empty(done)), len(done)),
        truncated_rate=_share(sum(a.truncated for a in done), len(done)),
        unextracted_rate=_share(len(_unextracted(task, done, scores)), len(done)),
        disagreement=_disagreement(task, scores),
        early_stop_rate=_share(len(early_stops(done, gated)), len(done)),
        misread_rate=_share(len(misread(done, gated)), len(done)),
        identical_rate=_share(len(identical(done, gated)), len(done)),
        loop_rate=_share(len(looping(done)), len(done)),
        thinking_cut_rate=_share(sum(a.thinking_cut for a in done), len(done)),
        stop_string_rate=_share(sum(isinstance(a.stop_reason, str) for a in done), len(done)),
    )


def _disagreement(task: QualityTask, scores: Sequence[Score]) -> float | None:
    """Largest difference to another filter, over the answers in which that other found something.

    Answers it cannot read say nothing about the gated filter: a task is free to gate on the filter that fits.
    """
    values: dict[str, dict[int, Score]] = {}
    for score in scores:
        values.setdefault(score.filter, {})[score.doc_id] = score
    gated = values.pop(task.filter, None)
    if gated is None or not values:
        return None
    differences = []
    for other in values.values():
        read = [(score.value, gated[doc].value) for doc, score in other.items() if score.found and doc in gated]
        differences.append(abs(sum(theirs - ours for theirs, ours in read)) / len(gated))
    return max(differences)


def invalid_reasons(
    task: QualityTask,
    asked: Sequence[int],
    answers: Sequence[Answer],
    scores: Sequence[Score],
    *,
    compares: bool = False,
) -> tuple[str, ...]:
    """Every reason why the score says nothing about the model, each with rate, examples, cause and fix.

    Empty for a sound run. ``asked`` are the ids of the questions that were to be asked; ``compares`` says
    that log-likelihoods of given answers were compared, so that no text was written.
    """
    rates = quality_rates(task, answers, scores)
    done = [a for a in answers if a.succeeded]
    found: tuple[str | None, ...] = (
        _count_reason(task, asked, answers, scores),
        _error_reason(task, rates, answers),
    )
    if compares:
        return tuple(reason for reason in found if reason)
    found += (
        _empty_reason(task, rates, done),
        _early_stop_reason(task, rates, done, scores),
        _thinking_reason(task, rates, done),
        _truncated_reason(task, rates, done),
        _loop_reason(task, rates, done),
        _identical_reason(task, rates, done, scores),
        _unextracted_reason(task, rates, done, scores),
        _disagreement_reason(task, rates, scores),
        _misread_reason(task, rates, done, scores),
    )
    return tuple(reason for reason in found if reason)


def _count_reason(
    task: QualityTask, asked: Sequence[int], answers: Sequence[Answer], scores: Sequence[Score]
) -> str | None:
    scored = sorted(s.doc_id for s in scores if s.filter == task.filter)
    sent = sorted(a.doc_id for a in answers)
    if sent == scored == sorted(asked):
        return None
    return (
        f"{len(asked)} questions were to be asked, {len(sent)} requests were made and {len(scored)} answers scored: "
        "some answers did not come from this engine, or were lost"
    )


def _error_reason(task: QualityTask, rates: QualityRates, answers: Sequence[Answer]) -> str | None:
    failed = [a for a in answers if not a.succeeded]
    if not failed or not _above(rates.error_rate, task.validity.error_rate):
        return None
    classes = ", ".join(f"{n} {name}" for name, n in Counter(str(a.outcome) for a in failed).most_common())
    details = "; ".join(dict.fromkeys(_short(a.detail or "", quoted=False) for a in failed[:_EXAMPLES]))
    statuses = {a.status for a in failed}
    if 404 in statuses:
        hint = "the engine serves the model under another name, or has no chat endpoint"
    elif statuses & {401, 403}:
        hint = "the API key is not the engine's"
    elif statuses & {400, 422}:
        hint = "the prompt does not fit max-model-len, or the model has no chat template"
    else:
        hint = "the engine was overloaded or stopped; its log says more"
    return f"{_of(failed, answers)} requests failed ({classes}): {details}. Likely cause: {hint}"


def _empty_reason(task: QualityTask, rates: QualityRates, done: Sequence[Answer]) -> str | None:
    empty = _empty(done)
    if not _above(rates.empty_rate, task.validity.empty_rate):
        return None
    thinking = sum(a.reasoning_chars > 0 for a in empty)
    if 2 * thinking >= len(empty):
        hint = (
            f"in {thinking} of them the whole text went into the reasoning field: the reasoning parser never saw the "
            "end of the thinking. Serve without --reasoning-parser, or raise max_gen_toks"
        )
    elif 2 * sum(isinstance(a.stop_reason, str) for a in empty) >= len(empty):
        hint = "a stop string of the task ended them at once: the model restates it; see stop in the task's options"
    else:
        hint = "the model ends at once: look at its chat template and at the end-of-text tokens it is served with"
    nulls = sum(a.text is None for a in empty)
    return f"{_of(empty, done)} answers are empty ({nulls} of them null). Likely cause: {hint}"


def _early_stop_reason(
    task: QualityTask, rates: QualityRates, done: Sequence[Answer], scores: Sequence[Score]
) -> str | None:
    if not _above(rates.early_stop_rate, task.validity.early_stop_rate):
        return None
    early = early_stops(done, [s for s in scores if s.filter == task.filter])
    strings = ", ".join(repr(text) for text, _ in Counter(str(a.stop_reason) for a in early).most_common(3))
    return (
        f"{_of(early, done)} answers were ended by the stop string {strings} within ten tokens, before any result: "
        f"{_ends(early)}. Likely cause: the model restates the question, or writes in turns as the worked examples "
        "do; give the task other stop strings (stop = [ … ]), or choose a task made for chat models"
    )


def _thinking_reason(task: QualityTask, rates: QualityRates, done: Sequence[Answer]) -> str | None:
    if not _above(rates.thinking_cut_rate, task.validity.truncated_rate):
        return None
    cut = [a for a in done if a.thinking_cut]
    longest = max(a.reasoning_chars for a in cut)
    return (
        f"{_of(cut, done)} answers were cut while the model was still thinking (up to {longest} characters of "
        f"thought, no answer yet): they are unfinished, not wrong. {_limit(task, cut)}; raise max_gen_toks, or turn "
        "thinking off (chat_template_kwargs = { enable_thinking = false })"
    )


def _truncated_reason(task: QualityTask, rates: QualityRates, done: Sequence[Answer]) -> str | None:
    cut = [a for a in done if a.truncated and not a.thinking_cut]
    if not cut or not _above(rates.truncated_rate, task.validity.truncated_rate):
        return None
    if 2 * sum(a.doc_id in {b.doc_id for b in looping(cut)} for a in cut) > len(cut):
        hint = "the model never ends and repeats itself (ignore_eos, a wrong chat template, broken weights)"
    elif task.sampling.get("ignore_eos"):
        hint = "ignore_eos is set in sampling: the model cannot end; take it out"
    else:
        hint = (
            "the limit is too small for this model (raise max_gen_toks), or the model never ends (ignore_eos, a "
            "wrong chat template, broken weights)"
        )
    return f"{_of(cut, done)} answers were cut: {_ends(cut)}. {_limit(task, cut)}. Likely cause: {hint}"


def _limit(task: QualityTask, cut: Sequence[Answer]) -> str:
    """Who cut them: the task's own limit, or one of the server's."""
    lengths = [a.output_tokens for a in cut if a.output_tokens is not None]
    asked = task.max_gen_toks
    if lengths and asked is not None and max(lengths) < asked:
        return (
            f"They ended after {max(lengths)} tokens though max_gen_toks={asked} were allowed: by max-model-len, or by "
            "max_new_tokens in the model's generation_config.json (--generation-config vllm ignores that)"
        )
    return f"They were cut at max_gen_toks={asked}"


def _loop_reason(task: QualityTask, rates: QualityRates, done: Sequence[Answer]) -> str | None:
    if not _above(rates.loop_rate, task.validity.loop_rate):
        return None
    stuck = looping(done)
    return (
        f"{_of(stuck, done)} answers end in one phrase over and over: {_ends(stuck)}. Likely cause: broken weights or "
        "kernels (a wrong dtype, quantization or attention backend), or a model that cannot end; a reference "
        "engine (reference = …) tells a broken model from a broken measurement"
    )


def _identical_reason(
    task: QualityTask, rates: QualityRates, done: Sequence[Answer], scores: Sequence[Score]
) -> str | None:
    if not _above(rates.identical_rate, task.validity.identical_rate):
        return None
    same = identical(done, [s for s in scores if s.filter == task.filter])
    return (
        f"{_of(same, done)} answers are the same text as the answer to another question: {_ends(same)}. Likely cause: "
        "the question does not reach the model (chat template, prompt cut on the left), a cache or proxy answers in "
        "its place, or its weights are broken"
    )


def _unextracted_reason(
    task: QualityTask, rates: QualityRates, done: Sequence[Answer], scores: Sequence[Score]
) -> str | None:
    missed = _unextracted(task, done, scores)
    if not _above(rates.unextracted_rate, task.validity.unextracted_rate):
        return None
    by_filter = scores_by_filter(scores)
    gated = by_filter.get(task.filter, 0.0)
    best = max(by_filter, key=lambda name: by_filter[name])
    broken = sum(a.empty or a.truncated for a in missed)
    if 2 * broken > len(missed):
        hint = f"{broken} of them are empty or cut, see there"
    elif by_filter[best] > gated + task.validity.disagreement:
        hint = (
            f"the answers are right but written differently ({best!r} scores {by_filter[best]:.1%}): gate on "
            f'filter = "{best}", or use a task and shots that show the format'
        )
    else:
        hint = "the model was not told the format (more shots), or answers nonsense: read the examples"
    return (
        f"the filter {task.filter!r} finds no answer in {_of(missed, done)} answers: {_ends(missed)}. "
        f"A score of {gated:.1%} here measures the format, not the model. Likely cause: {hint}"
    )


def _disagreement_reason(task: QualityTask, rates: QualityRates, scores: Sequence[Score]) -> str | None:
    if not _above(rates.disagreement, task.validity.disagreement):
        return None
    by_filter = scores_by_filter(scores)
    listed = ", ".join(f"{name!r} {value:.1%}" for name, value in by_filter.items())
    better = max(by_filter, key=lambda name: by_filter[name])
    if by_filter[better] > by_filter[task.filter]:
        hint = f"right answers are written in another form than the gated filter reads{_apart(task, better, scores)}"
    else:
        hint = "text follows the answer, and another filter reads that: a missing stop string, or ignore_eos"
    return f"the filters disagree by {rates.disagreement:.1%} ({listed}). Likely cause: {hint}"


def _apart(task: QualityTask, better: str, scores: Sequence[Score]) -> str:
    """One answer as both filters read it: ``, such as '1' for '18'``."""
    ours = {s.doc_id: s.extracted for s in scores if s.filter == task.filter and s.found and not s.value}
    for score in scores:
        if score.filter == better and score.value and score.doc_id in ours:
            return f" ({task.filter!r} read {ours[score.doc_id]!r} where {better!r} read {score.extracted!r})"
    return ""


def _misread_reason(
    task: QualityTask, rates: QualityRates, done: Sequence[Answer], scores: Sequence[Score]
) -> str | None:
    if not _above(rates.misread_rate, task.validity.misread_rate):
        return None
    gated = [s for s in scores if s.filter == task.filter]
    missed = misread(done, gated)
    read = {s.doc_id: s for s in gated}
    shown = "; ".join(
        f"{_short((a.text or '')[-_EXAMPLE_CHARS:])} was read as {read[a.doc_id].extracted!r}"
        for a in missed[:_EXAMPLES]
    )
    return (
        f"{_of(missed, done)} answers state the right number and are scored wrong by {task.filter!r}: {shown}. "
        "Likely cause: the number is written in a form the filter does not read (decimals, units, punctuation, "
        "another number after it); choose another filter or answer_pattern, or shots that show the form"
    )


def _empty(done: Sequence[Answer]) -> list[Answer]:
    """Null or blank answers, but for those whose thinking was cut: these are told as such."""
    return [a for a in done if a.empty and not a.thinking_cut]


def _unextracted(task: QualityTask, done: Sequence[Answer], scores: Sequence[Score]) -> list[Answer]:
    missed = {s.doc_id for s in scores if s.filter == task.filter and not s.found}
    return [a for a in done if a.doc_id in missed]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _above(rate: float | None, limit: float) -> bool:
    return rate is not None and rate > limit


def _of(part: Sequence[object], whole: Sequence[object]) -> str:
    return f"{len(part)} of {len(whole)} ({len(part) / len(whole):.1%})"


def _ends(answers: Sequence[Answer]) -> str:
    """Up to three examples by their last words, where an answer stands."""
    return ", ".join(_short((a.text or "")[-_EXAMPLE_CHARS:]) for a in answers[:_EXAMPLES])


def _short(text: str, *, quoted: bool = True) -> str:
    cut = text if len(text) <= _EXAMPLE_CHARS else f"{text[: _EXAMPLE_CHARS - 1]}…"
    return repr(cut) if quoted else " ".join(cut.split())
