"""May a score be believed? Rates over the answers, and the reasons a run says nothing about the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.quality import Answer, QualityTask, Score

__all__ = ["QualityRates", "invalid_reasons", "oracle_reason", "quality_rates", "scores_by_filter"]

_EXAMPLES = 3
_EXAMPLE_CHARS = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRates:
    """How the answers went; every rate is 0 on a healthy run, None where it could not be computed.

    ``error_rate`` is over the questions asked, the others over the answers received;
    ``stop_string_rate`` (answers ended by a stop string of the task) is told, not judged.
    """

    error_rate: float | None
    empty_rate: float | None
    truncated_rate: float | None
    unextracted_rate: float | None
    disagreement: float | None
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
    by_filter = scores_by_filter(scores)
    gated = by_filter.get(task.filter)
    others = [value for name, value in by_filter.items() if name != task.filter]
    return QualityRates(
        error_rate=_share(len(answers) - len(done), len(answers)),
        empty_rate=_share(sum(a.empty for a in done), len(done)),
        truncated_rate=_share(sum(a.truncated for a in done), len(done)),
        unextracted_rate=_share(len(_unextracted(task, done, scores)), len(done)),
        disagreement=None if gated is None or not others else max(abs(value - gated) for value in others),
        stop_string_rate=_share(sum(isinstance(a.stop_reason, str) for a in done), len(done)),
    )


def oracle_reason(task: QualityTask, scores: Sequence[Score], texts: Mapping[int, str]) -> str | None:
    """Why the task cannot be read at all: right answers do not score 1.0 through its own filter.

    ``texts`` holds the right answer of each question as it was given to the filter.
    """
    gated = [s for s in scores if s.filter == task.filter]
    wrong = [s for s in gated if s.value != 1.0]
    if gated and not wrong:
        return None
    examples = "; ".join(f"{_short(texts[s.doc_id])} was read as {s.extracted!r}" for s in wrong[:_EXAMPLES])
    reached = 0.0 if not gated else 1 - len(wrong) / len(gated)
    return (
        f"right answers score {reached:.1%} through the filter {task.filter!r} instead of 100%: {examples}. "
        "The filter does not fit how this task's answers read; no question was asked. Choose another filter, "
        "mend answer_pattern, or say with oracle how a right answer reads"
    )


def invalid_reasons(
    task: QualityTask, asked: Sequence[int], answers: Sequence[Answer], scores: Sequence[Score]
) -> tuple[str, ...]:
    """Every reason why the score says nothing about the model, each with rate, examples, cause and fix.

    Empty for a sound run. ``asked`` are the ids of the questions that were to be asked.
    """
    rates = quality_rates(task, answers, scores)
    done = [a for a in answers if a.succeeded]
    found = (
        _count_reason(task, asked, answers, scores),
        _error_reason(task, rates, answers),
        _empty_reason(task, rates, done),
        _truncated_reason(task, rates, done),
        _unextracted_reason(task, rates, done, scores),
        _disagreement_reason(task, rates, scores),
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
    empty = [a for a in done if a.empty]
    if not _above(rates.empty_rate, task.validity.empty_rate):
        return None
    thinking = sum(a.reasoning_chars > 0 for a in empty)
    if 2 * thinking >= len(empty):
        hint = (
            f"in {thinking} of them the whole text went into the reasoning field: the reasoning parser never saw the "
            "end of the thinking. Serve without --reasoning-parser, or raise max_gen_toks"
        )
    elif 2 * sum(isinstance(a.stop_reason, str) for a in empty) >= len(empty):
        hint = "a stop string of the task ended them at once: the model restates it; choose another task or prompt"
    else:
        hint = "the model ends at once: look at its chat template and at the end-of-text tokens it is served with"
    nulls = sum(a.text is None for a in empty)
    return f"{_of(empty, done)} answers are empty ({nulls} of them null). Likely cause: {hint}"


def _truncated_reason(task: QualityTask, rates: QualityRates, done: Sequence[Answer]) -> str | None:
    cut = [a for a in done if a.truncated]
    if not _above(rates.truncated_rate, task.validity.truncated_rate):
        return None
    return (
        f"{_of(cut, done)} answers were cut at max_gen_toks={task.max_gen_toks}: {_ends(cut)}. Likely cause: the "
        "limit is too small for this model (raise max_gen_toks), or the model never ends (ignore_eos, a wrong chat "
        "template, broken weights)"
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
    if any(value > by_filter[task.filter] for value in by_filter.values()):
        hint = "right answers are written in another form than the gated filter reads"
    else:
        hint = "text follows the answer, and another filter reads that: a missing stop string, or ignore_eos"
    return f"the filters disagree by {rates.disagreement:.1%} ({listed}). Likely cause: {hint}"


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
