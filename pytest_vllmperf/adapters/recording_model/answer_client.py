"""Requests to one engine, bounded in number, each recorded whatever became of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from pytest_vllmperf.domain.answers import Answer
from pytest_vllmperf.domain.records import RequestOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Literal

__all__ = ["AnswerClient", "Asking", "Target", "failure"]

_GIVE_UP_AFTER = 20
"""With so many failures in a row the engine is gone; the rest of the questions is not sent."""
_WATCH_PERIOD_S = 0.25
_DETAIL_CHARS = 300
_THINKING = ("<think>", "</think>")

Prompt = str | list[dict[str, str]]
"""A text for completions, or the messages of a chat."""


class _CalledOff(httpx.HTTPError):
    """There is a reason not to wait for an answer any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go.

    Args:
        base_url: The engine's address, with or without ``/v1``.
        model: The name it serves the model under.
        api_key: Sent as bearer token.
        max_concurrency: Requests in flight at most.
        timeout_s: For one request, from sending to the last byte.
        called_off: Asked four times a second why nothing more is to be waited for, such as that the engine died.
    """

    base_url: str
    model: str
    api_key: str = field(repr=False)
    max_concurrency: int
    timeout_s: float
    called_off: Callable[[], str | None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def root(self) -> str:
        """The address without ``/v1``."""
        return self.base_url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What all questions of a task have in common.

    Args:
        api: Chat or completions.
        fields: Fields of each request: sampling parameters, seed, ``max_tokens``.
        template: Arguments of the chat template.
    """

    api: Literal["chat", "completions"]
    fields: Mapping[str, object]
    template: Mapping[str, object] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The endpoint."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def body(self, model: str, prompt: Prompt) -> dict[str, object]:
        """The request for one prompt."""
        body: dict[str, object] = {"model": model, **self.fields}
        body["messages" if self.api == "chat" else "prompt"] = prompt
        if self.template:
            body["chat_template_kwargs"] = dict(self.template)
        return body


class AnswerClient:
    """An asynchronous client of one engine; use it as a context manager."""

    def __init__(self, target: Target, *, progress: Callable[[int], None] | None = None) -> None:
        self.target = target
        self._progress = progress
        self._slots = asyncio.Semaphore(target.max_concurrency)
        self._failures_in_a_row = 0
        self._done = 0
        self._off: str | None = None
        self._under_way: set[asyncio.Task[httpx.Response]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(
            base_url=target.root,
            headers={"Authorization": f"Bearer {target.api_key}"} if target.api_key else {},
            limits=httpx.Limits(max_connections=target.max_concurrency),
            timeout=None,  # noqa: S113 - each request has a deadline of its own
            trust_env=False,
            verify=target.root.startswith("https"),  # reading certificates takes longer than a question
        )

    async def __aenter__(self) -> AnswerClient:
        await self._client.__aenter__()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._client.__aexit__(kind, error, trace)

    async def _watch(self) -> None:
        """End what is under way once there is a reason to: a hung engine would hold each request to its deadline."""
        while (reason := self.target.called_off()) is None:  # noqa: ASYNC110 - another thread finds the reason
            await asyncio.sleep(_WATCH_PERIOD_S)
        self._off = reason
        for request in self._under_way:
            request.cancel()

    async def answer(self, doc_id: int, path: str, body: Mapping[str, object]) -> Answer:
        """Ask one question in its turn; a failure is an answer, too."""
        async with self._slots:
            started = time.monotonic_ns()
            reply = await self._recorded(doc_id, started, path, body)
            answer = reply if isinstance(reply, Answer) else _answer(doc_id, started, reply)
            self.note(succeeded=answer.succeeded)
            return answer

    async def scored(self, doc_id: int, tokens: Sequence[int], *, top: int) -> Answer | list[dict[int, dict[str, Any]]]:
        """What the model thinks of each token but the first of a given text.

        Args:
            doc_id: For the record of a failure.
            tokens: The text, as token ids.
            top: Likeliest tokens wanted beside the actual one; 0 for none.

        Returns:
            By position ``{token id: {logprob, rank, …}}``; or the failed answer.
        """
        async with self._slots:
            started = time.monotonic_ns()
            fields = {"prompt": list(tokens), "max_tokens": 1, "temperature": 0, "prompt_logprobs": top}
            reply = await self._recorded(doc_id, started, "/v1/completions", {"model": self.target.model, **fields})
            if isinstance(reply, Answer):
                return reply
            try:
                return _prompt_logprobs(reply.json(), tokens)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                return failure(doc_id, started, RequestOutcome.PROTOCOL_ERROR, reply.status_code, f"{error}")

    def note(self, *, succeeded: bool) -> None:
        """Count a question as done."""
        self._failures_in_a_row = 0 if succeeded else self._failures_in_a_row + 1
        self._done += 1
        if self._progress is not None:
            self._progress(self._done)

    async def tokens(self, prompt: Prompt, *, template: Mapping[str, object], generate: bool) -> list[int] | None:
        """The token ids the server makes of ``prompt``; None where it has no such endpoint, or refuses.

        ``generate`` says whether a chat's next turn is opened, as it is before an answer.
        """
        body: dict[str, object] = {"model": self.target.model}
        if isinstance(prompt, str):
            body["prompt"] = prompt
        else:
            body |= {"messages": prompt, "add_generation_prompt": generate}
            if template:
                body["chat_template_kwargs"] = dict(template)
        async with self._slots:
            try:
                reply = await self._posted("/tokenize", body)
                told = reply.json() if reply.status_code == httpx.codes.OK else {}
                # llama.cpp's server has a /tokenize of its own, which reads another field and finds no tokens
                found = told["tokens"] if "count" in told else None
            except (asyncio.TimeoutError, httpx.HTTPError, ValueError, LookupError, TypeError):
                return None
        return found if isinstance(found, list) and all(isinstance(token, int) for token in found) else None

    async def listed_models(self) -> list[str] | None:
        """Names the server lists; None where it does not answer."""
        try:
            reply = await asyncio.wait_for(self._client.get("/v1/models"), self.target.timeout_s)
            return [str(card["id"]) for card in reply.json()["data"]] if reply.status_code == httpx.codes.OK else None
        except (asyncio.TimeoutError, httpx.HTTPError, ValueError, LookupError, TypeError):
            return None

    async def _posted(self, path: str, body: Mapping[str, object]) -> httpx.Response:
        """The reply.

        Raises:
            asyncio.TimeoutError: There was none in time.
            _CalledOff: It is not waited for any longer.
            httpx.HTTPError: The request failed.
        """
        if self._off is not None:
            raise _CalledOff(self._off)
        request = asyncio.ensure_future(self._client.post(path, json=body))
        self._under_way.add(request)
        try:
            return await asyncio.wait_for(request, self.target.timeout_s)
        except asyncio.CancelledError:
            if self._off is None:
                raise
            raise _CalledOff(self._off) from None
        finally:
            self._under_way.discard(request)

    async def _recorded(
        self, doc_id: int, started: int, path: str, body: Mapping[str, object]
    ) -> httpx.Response | Answer:
        if self._failures_in_a_row >= _GIVE_UP_AFTER:
            detail = f"not sent: {_GIVE_UP_AFTER} requests in a row had failed"
            return failure(doc_id, started, RequestOutcome.CONNECTION_ERROR, None, detail)
        try:
            response = await self._posted(path, body)
        except _CalledOff as error:
            return failure(doc_id, started, RequestOutcome.CONNECTION_ERROR, None, f"not finished: {error}")
        except (asyncio.TimeoutError, httpx.TimeoutException):
            detail = f"no answer within {self.target.timeout_s:g} s"
            return failure(doc_id, started, RequestOutcome.TIMEOUT, None, detail)
        except httpx.HTTPError as error:
            detail = f"{type(error).__name__}: {error}".rstrip(": ")
            return failure(doc_id, started, RequestOutcome.CONNECTION_ERROR, None, detail)
        if response.status_code != httpx.codes.OK:
            detail = f"HTTP {response.status_code}: {response.text[:_DETAIL_CHARS]}"
            return failure(doc_id, started, RequestOutcome.HTTP_ERROR, response.status_code, detail)
        return response


def failure(doc_id: int, started: int, outcome: RequestOutcome, status: int | None, detail: str) -> Answer:
    """The record of a question that was not answered."""
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


def _answer(doc_id: int, started: int, response: httpx.Response) -> Answer:
    try:
        body = response.json()
        choice = body["choices"][0]
        usage = body.get("usage") or {}
        text, thinking = _text(choice)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        detail = f"unreadable answer ({type(error).__name__}: {error}): {response.text[:_DETAIL_CHARS]}"
        return failure(doc_id, started, RequestOutcome.PROTOCOL_ERROR, response.status_code, detail)
    return Answer(
        doc_id=doc_id,
        outcome=RequestOutcome.SUCCESS,
        status=response.status_code,
        text=text,
        reasoning_chars=thinking,
        finish_reason=choice.get("finish_reason"),
        stop_reason=choice.get("stop_reason"),
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        dispatched_ns=started,
        ended_ns=time.monotonic_ns(),
        detail=None,
    )


def _text(choice: Mapping[str, Any]) -> tuple[str | None, int]:
    """The answer, and how many characters of thinking came before it (in a field of its own, or in tags)."""
    message = choice.get("message")
    text = choice["text"] if message is None else message.get("content")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"content is a {type(text).__name__}, not a string")
    apart = "" if message is None else message.get("reasoning") or message.get("reasoning_content") or ""
    if text is None or apart:
        return text, len(apart)
    thought, end, answer = text.rpartition(_THINKING[1])
    if end:
        return answer.lstrip(), len(thought)
    if text.lstrip().startswith(_THINKING[0]):
        return "", len(text)
    return text, 0


def _prompt_logprobs(body: Any, tokens: Sequence[int]) -> list[dict[int, dict[str, Any]]]:
    """Every position but the first.

    Raises:
        ValueError: The server sent none, or not of the whole text.
    """
    found = body["choices"][0].get("prompt_logprobs")
    if found is None:
        raise ValueError("the server returned no log-probabilities of the prompt")
    if len(found) != len(tokens):
        raise ValueError(f"the server scored {len(found)} of {len(tokens)} tokens: the prompt was cut")
    positions = [{int(token): value for token, value in (entry or {}).items()} for entry in found[1:]]
    missing = sum(token not in position for token, position in zip(tokens[1:], positions, strict=True))
    if missing:
        raise ValueError(
            f"the log-probabilities of {missing} of {len(tokens) - 1} tokens are missing (a prefix cache that "
            "skips them?)"
        )
    return positions
