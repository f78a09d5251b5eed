"""Requests around the questions: is it the right engine, did prompts arrive whole, what does it make of given texts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.recording_model.answer_client import AnswerClient, Asking, Target
from pytest_vllmperf.domain.answers import Answer
from pytest_vllmperf.domain.divergence import ReadText

if TYPE_CHECKING:
    from pytest_vllmperf.adapters.recording_model.answer_client import Prompt

__all__ = ["ask_prompts", "gives_log_likelihoods", "listed_models", "prompt_tokens", "read_texts", "send_again"]

_TOP = 20
"""Likeliest tokens asked for at each position: vLLM's own limit (max-logprobs) unless raised."""
_LONGEST = 512
_AT_ONCE = 2
"""Scoring a prompt needs the whole vocabulary for each of its tokens at once: few, so that memory suffices."""


def listed_models(target: Target) -> list[str] | None:
    """Names the engine lists; None where it does not answer."""

    async def ask() -> list[str] | None:
        async with AnswerClient(target) as client:
            return await client.listed_models()

    return asyncio.run(ask())


def ask_prompts(target: Target, asking: Asking, prompts: Sequence[Prompt]) -> list[Answer]:
    """Ask a few prompts and return their answers in order."""
    return send_again(target, asking, {i: asking.body(target.model, prompt) for i, prompt in enumerate(prompts)})


def send_again(target: Target, asking: Asking, bodies: Mapping[int, Mapping[str, object]]) -> list[Answer]:
    """Send requests as they are, by question, in the order given."""

    async def send() -> list[Answer]:
        async with AnswerClient(target) as client:
            return await asyncio.gather(*(client.answer(doc, asking.path, body) for doc, body in bodies.items()))

    return asyncio.run(send())


def prompt_tokens(target: Target, asking: Asking, prompts: Mapping[int, Prompt]) -> dict[int, int]:
    """Tokens of each prompt by the server's own tokenizer; without those it did not count."""

    async def ask() -> list[list[int] | None]:
        async with AnswerClient(target) as client:
            return await asyncio.gather(
                *(client.tokens(prompt, template=asking.template, generate=True) for prompt in prompts.values())
            )

    counted = zip(prompts, asyncio.run(ask()), strict=True)
    return {doc_id: len(tokens) for doc_id, tokens in counted if tokens is not None}


def gives_log_likelihoods(target: Target) -> str | None:
    """Why the engine cannot compare log-likelihoods of given texts; None when it can."""

    async def ask() -> str | None:
        async with AnswerClient(target) as client:
            tokens = await client.tokens("1 + 1 = 2", template={}, generate=False)
            if tokens is None:
                return "it has no /tokenize endpoint as vLLM's"
            scored = await client.scored(0, tokens, top=0)
            return scored.detail if isinstance(scored, Answer) else None

    return asyncio.run(ask())


def read_texts(
    target: Target, asking: Asking, texts: Sequence[tuple[Prompt, str]]
) -> tuple[list[ReadText], str | None]:
    """Make the engine read right answers, and note how likely it holds each of their tokens.

    Args:
        target: Where they go.
        asking: How prompts are put.
        texts: Pairs of a prompt and the answer to it.

    Returns:
        What was read, in order, without texts above 512 tokens; and why the first one could not be read that failed.
    """

    async def read() -> list[ReadText | str]:
        async with AnswerClient(replace(target, max_concurrency=min(_AT_ONCE, target.max_concurrency))) as client:
            return await asyncio.gather(*(_read(client, asking, i, *text) for i, text in enumerate(texts)))

    found = asyncio.run(read())
    return [text for text in found if isinstance(text, ReadText)], next((t for t in found if isinstance(t, str)), None)


async def _read(client: AnswerClient, asking: Asking, number: int, prompt: Prompt, answer: str) -> ReadText | str:
    before = await client.tokens(prompt, template=asking.template, generate=True)
    if isinstance(prompt, str):
        whole = await client.tokens(f"{prompt}{answer}", template={}, generate=False)
    else:  # the answer's tokens are put behind the opened turn: a template may rewrite earlier turns
        rest = await client.tokens(answer, template={}, generate=False)
        whole = None if before is None or rest is None else before + rest
    if before is None or whole is None:
        return "the engine has no /tokenize endpoint as vLLM's"
    if not 0 < len(before) < len(whole) <= _LONGEST:
        return f"a text of {len(whole)} tokens is not read; {_LONGEST} is the most"
    scored = await client.scored(number, whole, top=_TOP)
    if isinstance(scored, Answer):
        return scored.detail or str(scored.outcome)
    start = len(before)
    return ReadText(
        tokens=tuple(whole[start:]),
        logprobs=tuple(float(scored[i - 1][whole[i]]["logprob"]) for i in range(start, len(whole))),
        top=tuple(
            {
                token: float(one["logprob"])
                for token, one in scored[i - 1].items()
                if (one.get("rank") or _TOP + 1) <= _TOP
            }
            for i in range(start, len(whole))
        ),
    )
