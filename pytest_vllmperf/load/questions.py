"""What each request asks: drawn from a seed or taken from a file, before anything is encoded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.prompts import Conversations, RandomPrompts, SharedPrefix
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError
from pytest_vllmperf.load.prompt_files import FilePrompt
from pytest_vllmperf.load.trace_files import MOONCAKE_BLOCK, TraceEntry

__all__ = ["Part", "Question", "prompts", "questions"]

Part = tuple[int, ...] | str
"""Token ids (words of the chat vocabulary for ``api="chat"``), or text."""

_REDRAWS = 100
"""How often a prompt drawn before is drawn anew, before a tiny token range is blamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request's content.

    Args:
        turns: What user and assistant said in turn; the last is the user's. One for most.
        output_tokens: Length of the answer asked for.
        follows: Index of the request that must be over before this one is sent; None for no such.
    """

    turns: tuple[Part, ...]
    output_tokens: int
    follows: int | None = None


def questions(
    workload: Workload,
    *,
    token_range: tuple[int, int],
    seed: int,
    lines: Sequence[FilePrompt] | None = None,
    trace: Sequence[TraceEntry] | None = None,
) -> Iterator[Question]:
    """The content of every request of ``workload``, in order.

    Args:
        workload: What is asked.
        token_range: Ids are drawn from ``[low, high)``.
        seed: Decides everything drawn, except shared prefixes: those are the workload's own, so that the
            warm-up can put them into the cache.
        lines: The prompts of the workload's file, where it has one.
        trace: The entries of the workload's trace, where it has one.

    Raises:
        WorkloadError: The range is empty, or too small for that many different prompts.
    """
    source = workload.prompts
    if lines is not None:
        return (
            Question(turns=(line.prompt,), output_tokens=line.output_tokens or workload.output_tokens) for line in lines
        )
    if trace is not None:
        return _recorded(workload, trace, token_range, seed)
    if isinstance(source, SharedPrefix):
        return _shared_prefix(workload, source, token_range, seed)
    if isinstance(source, Conversations):
        return _conversations(workload, source, token_range, seed)
    if isinstance(source, RandomPrompts):
        drawn = prompts(workload, token_range=token_range, seed=seed)
        return (Question(turns=(prompt,), output_tokens=workload.output_tokens) for prompt in drawn)
    raise WorkloadError(
        f"workload {workload.name!r}: prompts={source!r} cannot be drawn: the engine must be known first"
    )


def prompts(workload: Workload, *, token_range: tuple[int, int], seed: int) -> Iterator[tuple[int, ...]]:
    """Draw one prompt for each request: ``input_tokens`` ids from ``[low, high)``, no two alike.

    Raises:
        WorkloadError: The range is empty, or too small for that many different prompts.
    """
    draw = _fresh_draws(workload, token_range, seed)
    return (draw(workload.input_tokens) for _ in range(workload.requests))


def _fresh_draws(workload: Workload, token_range: tuple[int, int], seed: int) -> Callable[[int], tuple[int, ...]]:
    """A function that draws ids of a given length, never the same ones twice."""
    low, high = token_range
    if not 0 <= low < high:
        raise WorkloadError(f"token_range={token_range!r} must be (low, high) with 0 <= low < high")
    source = random.Random(f"{seed}:prompts")  # noqa: S311 - prompts, not secrets
    alphabet = range(low, high)
    seen: set[tuple[int, ...]] = set()

    def draw(length: int) -> tuple[int, ...]:
        for _attempt in range(_REDRAWS):
            drawn = tuple(source.choices(alphabet, k=length))
            if drawn not in seen:
                seen.add(drawn)
                return drawn
        raise WorkloadError(
            f"workload {workload.name!r}: token_range={token_range!r} does not hold {workload.requests} different "
            f"prompts of {length} tokens; ask for fewer requests or longer prompts"
        )

    return draw


def _shared_prefix(
    workload: Workload, source: SharedPrefix, token_range: tuple[int, int], seed: int
) -> Iterator[Question]:
    own = random.Random(f"{workload.name}:{workload.seed}:prefix")  # noqa: S311 - prompts, not secrets
    prefixes = [tuple(own.choices(range(*token_range), k=source.tokens)) for _ in range(source.groups)]
    order = random.Random(f"{seed}:sharing")  # noqa: S311 - an order, no secret
    sharing = set(order.sample(range(workload.requests), source.sharing(workload.requests)))
    draw = _fresh_draws(workload, token_range, seed)
    turn = 0
    for index in range(workload.requests):
        opening: tuple[int, ...] = ()
        if index in sharing:
            opening = prefixes[turn % source.groups]
            turn += 1
        prompt = opening + draw(workload.input_tokens - len(opening))
        yield Question(turns=(prompt,), output_tokens=workload.output_tokens)


def _recorded(
    workload: Workload, trace: Sequence[TraceEntry], token_range: tuple[int, int], seed: int
) -> Iterator[Question]:
    """Random prompts of the recorded lengths; blocks with equal ids are equal, and differ from run to run."""
    draw = _fresh_draws(workload, token_range, seed)
    alphabet = range(*token_range)
    for entry in trace:
        whole: tuple[int, ...] = ()
        for block in entry.blocks:
            own = random.Random(f"{seed}:block:{block}")  # noqa: S311 - prompts, not secrets
            whole += tuple(own.choices(alphabet, k=min(MOONCAKE_BLOCK, entry.input_tokens - len(whole))))
        yield Question(turns=(whole or draw(entry.input_tokens),), output_tokens=entry.output_tokens)


def _conversations(
    workload: Workload, source: Conversations, token_range: tuple[int, int], seed: int
) -> Iterator[Question]:
    draw = _fresh_draws(workload, token_range, seed)
    said: tuple[Part, ...] = ()
    for index in range(workload.requests):
        first = index % source.turns == 0
        said = (
            (draw(workload.input_tokens),)
            if first
            else (*said, draw(workload.output_tokens), draw(workload.input_tokens))
        )
        yield Question(turns=said, output_tokens=workload.output_tokens, follows=None if first else index - 1)
