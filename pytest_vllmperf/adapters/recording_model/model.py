"""The model lm-eval talks to: it generates by chat or completions, and compares log-likelihoods by completions."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from pytest_vllmperf.adapters.recording_model.answer_client import AnswerClient, Asking, Target, failure
from pytest_vllmperf.domain.answers import Answer
from pytest_vllmperf.domain.records import RequestOutcome

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from pytest_vllmperf.adapters.recording_model.answer_client import Prompt

__all__ = ["RecordingModel"]

_STOPS = 4
"""The API allows four stop strings; lm-eval's own models send the first four, too."""
_IMPOSSIBLE = -1e9
"""Log-likelihood given to a choice that could not be scored; its question counts as failed anyway."""

Number = Callable[[str, int], int]
"""From a task's name and the place of a question among those asked to the question's id."""


class RecordingModel(LM):  # type: ignore[misc]  # lm-eval is not typed
    """Asks one engine; ``answers`` holds one record for each question, in the order asked.

    ``prompts`` and ``bodies`` keep what was sent, by question.

    Args:
        target: Where the questions go.
        asking: What they have in common.
        number: Ids of the questions; lm-eval counts those it asks from 0, in each task.
        stop: Stop strings in place of the task's own.
        progress: Called with (questions answered, questions) after each answer.
    """

    def __init__(
        self,
        *,
        target: Target,
        asking: Asking,
        number: Number,
        stop: Sequence[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.answers: list[Answer] = []
        self.prompts: dict[int, Prompt] = {}
        self.bodies: dict[int, Mapping[str, object]] = {}
        self._target = target
        self._asking = asking
        self._number = number
        self._stop = stop
        self._progress = progress

    @property
    def tokenizer_name(self) -> str:
        """lm-eval keys caches by this; no cache is ever used, so the model's name will do."""
        return self._target.model

    def chat_template(self, chat_template: bool | str = False) -> str:
        """None here: the engine applies the template of the model it serves."""
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Carry the messages through lm-eval, which insists on text."""
        return json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Ask every question; a failed request counts as an empty answer, and is recorded as what it was."""
        self.answers = asyncio.run(self._ask_all(requests))
        return [answer.text or "" for answer in self.answers]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-likelihood, and whether greedy decoding gives it.

        The texts are cut into tokens by the server itself, continuation and context together, as lm-eval's
        own models do.
        """
        results = asyncio.run(self._compare_all(requests))
        by_question: dict[int, list[tuple[str, float, Answer | None, int, int]]] = {}
        for request, (likelihood, _, failed, started, ended) in zip(requests, results, strict=True):
            doc_id = self._number(request.task_name, request.doc_id)
            by_question.setdefault(doc_id, []).append((request.args[1], likelihood, failed, started, ended))
        self.answers = [_compared(doc_id, choices) for doc_id, choices in by_question.items()]
        return [(likelihood, greedy) for likelihood, greedy, *_ in results]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not needed by any task with right and wrong answers."""
        raise NotImplementedError("perplexity over whole documents is no task with right answers")

    def _client(self, count: int) -> AnswerClient:
        told = self._progress
        return AnswerClient(self._target, progress=None if told is None else lambda done: told(done, count))

    async def _ask_all(self, requests: Sequence[Instance]) -> list[Answer]:
        async with self._client(len(requests)) as client:
            return await asyncio.gather(*(self._ask(client, request) for request in requests))

    async def _ask(self, client: AnswerClient, request: Instance) -> Answer:
        context, options = request.args
        doc_id = self._number(request.task_name, request.doc_id)
        prompt = json.loads(context) if self._asking.api == "chat" else context
        self.prompts[doc_id] = prompt
        self.bodies[doc_id] = self._body(prompt, options)
        return await client.answer(doc_id, self._asking.path, self.bodies[doc_id])

    def _body(self, prompt: Prompt, options: Mapping[str, Any]) -> dict[str, object]:
        until = options.get("until") or [] if self._stop is None else self._stop
        stops = [until] if isinstance(until, str) else list(until)
        body = self._asking.body(self._target.model, prompt)
        if "max_gen_toks" in options:
            body["max_tokens"] = options["max_gen_toks"]
        if stops:
            body["stop"] = stops[:_STOPS]
        return body

    async def _compare_all(self, requests: Sequence[Instance]) -> list[tuple[float, bool, Answer | None, int, int]]:
        async with self._client(len(requests)) as client:
            contexts: dict[str, asyncio.Task[list[int] | None]] = {}

            def tokens_of(text: str) -> asyncio.Task[list[int] | None]:
                if text not in contexts:
                    contexts[text] = asyncio.ensure_future(client.tokens(text, template={}, generate=False))
                return contexts[text]

            return await asyncio.gather(*(self._compare(client, tokens_of, request) for request in requests))

    async def _compare(
        self, client: AnswerClient, tokens_of: Callable[[str], asyncio.Task[list[int] | None]], request: Instance
    ) -> tuple[float, bool, Answer | None, int, int]:
        context, continuation = request.args
        spaces = len(context) - len(context.rstrip())
        if spaces:  # a space belongs to the word after it
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        started = time.monotonic_ns()
        doc_id = self._number(request.task_name, request.doc_id)
        before = await tokens_of(context) if context else None
        whole = await client.tokens(context + continuation, template={}, generate=False)
        result: Answer | list[dict[int, dict[str, Any]]]
        if not before or whole is None or len(whole) <= len(before):
            detail = f"the text {context[-40:] + continuation!r} could not be cut into context and continuation"
            result = failure(doc_id, started, RequestOutcome.PROTOCOL_ERROR, None, detail)
        else:
            result = await client.scored(doc_id, whole, top=0)
        failed = result if isinstance(result, Answer) else None
        client.note(succeeded=failed is None)
        ended = time.monotonic_ns()
        if isinstance(result, Answer) or whole is None or before is None:
            return _IMPOSSIBLE, False, failed, started, ended
        chosen = [place[token] for token, place in zip(whole[1:], result, strict=True)][len(before) - 1 :]
        likelihood = sum(float(one["logprob"]) for one in chosen)
        return likelihood, all(one.get("rank") == 1 for one in chosen), None, started, ended


def _compared(doc_id: int, choices: Sequence[tuple[str, float, Answer | None, int, int]]) -> Answer:
    """One record for a question whose choices were scored one by one: the likeliest is its answer."""
    failed = next((failed for _, _, failed, _, _ in choices if failed is not None), None)
    if failed is not None:
        return failed
    best = max(choices, key=lambda choice: choice[1])
    return Answer(
        doc_id=doc_id,
        outcome=RequestOutcome.SUCCESS,
        status=200,
        text=best[0],
        reasoning_chars=0,
        finish_reason="stop",
        stop_reason=None,
        input_tokens=None,
        output_tokens=None,
        dispatched_ns=min(choice[3] for choice in choices),
        ended_ns=max(choice[4] for choice in choices),
        detail=None,
    )
