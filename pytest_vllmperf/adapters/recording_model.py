"""The engine as a model of lm-eval's: questions go out by chat, and every answer is recorded.

lm-eval's own API models keep neither finish reason nor tokens nor latency, and one failed request ends
their run; without those records a broken measurement cannot be told from a bad model. Import this module
lazily: it needs lm-eval, which takes seconds to load.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
from lm_eval.api.model import LM

from pytest_vllmperf.domain.quality import Answer
from pytest_vllmperf.domain.records import RequestOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval.api.instance import Instance

__all__ = ["RecordingChatModel"]

_STOPS = 4
"""The chat API allows four stop strings; lm-eval's own models send the first four, too."""
_GIVE_UP_AFTER = 20
"""With so many failures in a row the engine is gone; the rest of the questions is not sent."""
_DETAIL_CHARS = 300


class RecordingChatModel(LM):  # type: ignore[misc]  # lm-eval is not typed
    """Asks ``/v1/chat/completions``; ``answers`` holds one record for each question, in the order asked.

    Args:
        base_url: The engine's address, with or without ``/v1``.
        model: The name it serves the model under.
        api_key: Sent as bearer token.
        doc_ids: Ids of the questions in the data set, in the order lm-eval asks them (it counts from 0).
        max_concurrency: Requests in flight at most.
        max_gen_toks: Answer length where the task does not say.
        seed: Sent with every request; at temperature 0 it decides nothing but ties.
        timeout_s: For one request, from sending to the last byte.
        progress: Called with (answers so far, questions) after each answer.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str,
        doc_ids: Sequence[int],
        max_concurrency: int,
        max_gen_toks: int,
        seed: int,
        timeout_s: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.answers: list[Answer] = []
        self._url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._body = {"model": model, "seed": seed, "max_tokens": max_gen_toks, "temperature": 0}
        self._doc_ids = tuple(doc_ids)
        self._max_concurrency = max_concurrency
        self._timeout_s = timeout_s
        self._progress = progress
        self._failures_in_a_row = 0
        self._done = 0

    @property
    def tokenizer_name(self) -> str:
        """lm-eval keys caches by this; no cache is ever used, so the model's name will do."""
        return str(self._body["model"])

    def chat_template(self, chat_template: bool | str = False) -> str:
        """None here: the engine applies the template of the model it serves."""
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Carry the messages through lm-eval, which insists on text."""
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not by chat: the chat API returns no log-likelihoods of a given text."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not by chat, see :meth:`loglikelihood`."""
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Ask every question; a failed request counts as an empty answer, and is recorded as what it was."""
        self.answers = asyncio.run(self._ask_all(requests))
        return [answer.text or "" for answer in self.answers]

    async def _ask_all(self, requests: Sequence[Instance]) -> list[Answer]:
        slots = asyncio.Semaphore(self._max_concurrency)
        async with httpx.AsyncClient(
            headers=self._headers,
            limits=httpx.Limits(max_connections=self._max_concurrency),
            timeout=None,  # noqa: S113 - each request has a deadline of its own
            trust_env=False,
            verify=self._url.startswith("https"),  # reading certificates takes longer than a question
        ) as client:
            return await asyncio.gather(*(self._ask_in_turn(client, slots, r, len(requests)) for r in requests))

    async def _ask_in_turn(
        self, client: httpx.AsyncClient, slots: asyncio.Semaphore, request: Instance, count: int
    ) -> Answer:
        async with slots:
            answer = await self._ask(client, request)
            self._failures_in_a_row = 0 if answer.succeeded else self._failures_in_a_row + 1
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, count)
            return answer

    async def _ask(self, client: httpx.AsyncClient, request: Instance) -> Answer:
        doc_id = self._doc_ids[request.doc_id]
        started = time.monotonic_ns()
        if self._failures_in_a_row >= _GIVE_UP_AFTER:
            detail = f"not sent: {_GIVE_UP_AFTER} requests in a row had failed"
            return _failure(doc_id, started, RequestOutcome.CONNECTION_ERROR, None, detail)
        context, options = request.args
        try:
            response = await asyncio.wait_for(
                client.post(self._url, json=self._request_body(context, options)), self._timeout_s
            )
        except (asyncio.TimeoutError, httpx.TimeoutException):
            detail = f"no answer within {self._timeout_s:g} s"
            return _failure(doc_id, started, RequestOutcome.TIMEOUT, None, detail)
        except httpx.HTTPError as error:
            detail = f"{type(error).__name__}: {error}".rstrip(": ")
            return _failure(doc_id, started, RequestOutcome.CONNECTION_ERROR, None, detail)
        return _answer(doc_id, started, response)

    def _request_body(self, context: str, options: Mapping[str, Any]) -> dict[str, object]:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        body: dict[str, object] = {**self._body, "messages": json.loads(context)}
        if "max_gen_toks" in options:
            body["max_tokens"] = options["max_gen_toks"]
        if stops:
            body["stop"] = stops[:_STOPS]
        return body


def _answer(doc_id: int, started: int, response: httpx.Response) -> Answer:
    if response.status_code != httpx.codes.OK:
        detail = f"HTTP {response.status_code}: {response.text[:_DETAIL_CHARS]}"
        return _failure(doc_id, started, RequestOutcome.HTTP_ERROR, response.status_code, detail)
    try:
        body = response.json()
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage") or {}
        text = _content(message)
        thinking = message.get("reasoning") or message.get("reasoning_content") or ""
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        detail = f"unreadable answer ({type(error).__name__}: {error}): {response.text[:_DETAIL_CHARS]}"
        return _failure(doc_id, started, RequestOutcome.PROTOCOL_ERROR, response.status_code, detail)
    return Answer(
        doc_id=doc_id,
        outcome=RequestOutcome.SUCCESS,
        status=response.status_code,
        text=text,
        reasoning_chars=len(thinking),
        finish_reason=choice.get("finish_reason"),
        stop_reason=choice.get("stop_reason"),
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        dispatched_ns=started,
        ended_ns=time.monotonic_ns(),
        detail=None,
    )


def _content(message: Mapping[str, object]) -> str | None:
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"content is a {type(text).__name__}, not a string")
    return text


def _failure(doc_id: int, started: int, outcome: RequestOutcome, status: int | None, detail: str) -> Answer:
    return Answer(
        doc_id=doc_id,
        outcome=outcome,
        status=status,
        text=None,
        reasoning_chars=0,
        finish_reason=None,
        stop_reason=None,
        input_tokens=None,
        output_tokens=None,
        dispatched_ns=started,
        ended_ns=time.monotonic_ns(),
        detail=detail,
    )
