"""What an answer says: raw bytes and stamps become a RequestRecord. Pure, and never raises on bad answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Union

import msgspec

from pytest_vllmperf.domain.records import RequestOutcome, RequestRecord
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.http_answer import HttpAnswer, read_http
from pytest_vllmperf.load.sse import EventTooLong, event_data

__all__ = ["record_of"]

_DETAIL_LENGTH = 300
_Count = Annotated[int, msgspec.Meta(ge=0)]
_BAD_FINISHES = ("abort", "error")


_ABSENT = msgspec.Raw()


class _Delta(msgspec.Struct):
    content: Union[str, None] = None
    reasoning: Union[str, None] = None
    reasoning_content: Union[str, None] = None
    tool_calls: Union[list[msgspec.Raw], None] = None


class _Choice(msgspec.Struct):
    text: Union[str, None] = None
    delta: Union[_Delta, None] = None
    finish_reason: Union[str, None] = None

    def carries_tokens(self) -> bool:
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls or self.text)


class _PromptDetails(msgspec.Struct):
    cached_tokens: Union[_Count, None] = None


class _Usage(msgspec.Struct):
    prompt_tokens: Union[_Count, None] = None
    completion_tokens: Union[_Count, None] = None
    prompt_tokens_details: Union[_PromptDetails, None] = None


class _Event(msgspec.Struct):
    choices: Union[list[_Choice], None] = None
    usage: Union[_Usage, None] = None
    error: msgspec.Raw = _ABSENT
    object: Union[str, None] = None
    message: Union[str, None] = None

    def error_message(self) -> str | None:
        if self.error is not _ABSENT:
            raw = bytes(self.error)
            if raw != b"null":
                return _message_in(raw)
        return (self.message or "unnamed error") if self.object == "error" else None


_decode_event = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class _Reading:
    """What the events of one stream added up to so far."""

    event_ns: list[int] = field(default_factory=list)
    event_tokens: list[int] = field(default_factory=list)
    told: int = 0
    events: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    error: str | None = None
    malformed: str | None = None

    def take(self, stamp: int, event: _Event) -> None:
        self.events += 1
        problem = event.error_message()
        if problem is not None:
            self.error = self.error or problem
            return
        before = self.output_tokens or 0
        after = self._take_usage(event.usage)
        carries = False
        for choice in event.choices or ():
            carries = carries or choice.carries_tokens() or (after is not None and after > before)
            self.finish_reason = choice.finish_reason or self.finish_reason
        if carries:
            self.event_ns.append(stamp)
            self.event_tokens.append((after or 0) - before)
            self.told += after is not None

    def _take_usage(self, usage: _Usage | None) -> int | None:
        if usage is None:
            return None
        self.input_tokens = usage.prompt_tokens if usage.prompt_tokens is not None else self.input_tokens
        details = usage.prompt_tokens_details
        if details is not None and details.cached_tokens is not None:
            self.cached_tokens = details.cached_tokens
        if usage.completion_tokens is not None:
            self.output_tokens = usage.completion_tokens
        return usage.completion_tokens

    def exact_event_tokens(self) -> tuple[int, ...] | None:
        """Tokens of each event, None where unknown.

        Known when every event told and they add up, or when none told and as many tokens as events leave one for each.
        """
        if not self.told and len(self.event_ns) == self.output_tokens:
            return (1,) * len(self.event_ns)
        counted = self.told == len(self.event_ns) and min(self.event_tokens, default=0) >= 0
        return tuple(self.event_tokens) if counted and sum(self.event_tokens) == self.output_tokens else None


def record_of(exchange: Exchange, *, output_tokens: int) -> RequestRecord:
    """Judge one finished exchange, of which exactly ``output_tokens`` tokens had been asked.

    Success needs all of: HTTP 200, a complete stream of well-formed events, no error object, at least one event
    that carries tokens, a finish reason, ``[DONE]``, and the asked number of tokens where the server counts them.
    An event carries tokens when its text, content, reasoning or tool calls are not empty, or when the running
    usage grew with it.
    """
    answer = read_http(exchange.reads)
    reading = _read_events(answer) if answer.status == 200 else _Reading()
    outcome, detail = _judge(exchange, answer, reading, asked=output_tokens)
    return RequestRecord(
        index=exchange.index,
        outcome=outcome,
        status=answer.status,
        intended_ns=exchange.intended_ns,
        dispatched_ns=exchange.dispatched_ns,
        written_ns=exchange.written_ns,
        first_byte_ns=answer.body[0][0] if answer.body else None,
        event_ns=tuple(reading.event_ns),
        event_tokens=reading.exact_event_tokens(),
        ended_ns=exchange.ended_ns,
        input_tokens=reading.input_tokens,
        output_tokens=reading.output_tokens,
        cached_tokens=reading.cached_tokens,
        finish_reason=reading.finish_reason,
        detail=detail,
    )


def _read_events(answer: HttpAnswer) -> _Reading:
    reading = _Reading()
    data = b""
    try:
        for stamp, data in event_data(answer.body, flush=answer.complete):
            if data == b"[DONE]":
                reading.done = True
                break  # whatever comes later belongs to nobody
            reading.take(stamp, _decode_event(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reading.malformed = f"an event is not what the API sends ({error}): {_one_line(data)}"
    except EventTooLong as error:
        reading.malformed = str(error)
    return reading


def _judge(
    exchange: Exchange, answer: HttpAnswer, reading: _Reading, *, asked: int
) -> tuple[RequestOutcome, str | None]:
    """The first of these that holds names the outcome; the engine's own words go before ours."""
    if exchange.outcome is RequestOutcome.TIMEOUT:
        return RequestOutcome.TIMEOUT, exchange.detail
    if answer.status is not None and answer.status != 200:
        said = _message_in(b"".join(piece for _, piece in answer.body))
        return RequestOutcome.HTTP_ERROR, _one_line(f"HTTP {answer.status}: {said}")
    if reading.error is not None:
        return RequestOutcome.STREAM_ERROR, _one_line(f"error inside the stream: {reading.error}")
    if reading.malformed is not None:
        return RequestOutcome.PROTOCOL_ERROR, _one_line(reading.malformed)
    if exchange.outcome is not None:
        return exchange.outcome, exchange.detail
    if answer.error is not None:
        return RequestOutcome.PROTOCOL_ERROR, _one_line(f"not HTTP: {answer.error}")
    return _judge_stream(answer, reading, asked=asked)


def _judge_stream(answer: HttpAnswer, reading: _Reading, *, asked: int) -> tuple[RequestOutcome, str | None]:
    foreign = answer.content_type and not answer.content_type.startswith("text/event-stream")
    if foreign or (answer.body and not (reading.events or reading.done)):
        start = _one_line(b"".join(piece for _, piece in answer.body[:1]))
        kind = answer.content_type or "no content type"
        return RequestOutcome.PROTOCOL_ERROR, f"not a stream of events ({kind}): {start}"
    if reading.finish_reason in _BAD_FINISHES:
        return RequestOutcome.STREAM_ERROR, f"the engine gave up: finish_reason {reading.finish_reason!r}"
    missing = [name for name, seen in (("finish_reason", reading.finish_reason), ("[DONE]", reading.done)) if not seen]
    if missing:
        return RequestOutcome.TRUNCATED, f"the stream ended without {' and without '.join(missing)}"
    if not reading.event_ns:
        return RequestOutcome.NO_TOKENS, "the stream is well formed and carries no token"
    if reading.output_tokens is not None and reading.output_tokens != asked:
        said = f"{reading.output_tokens} tokens instead of {asked}, although ignore_eos was sent"
        return RequestOutcome.WRONG_LENGTH, said
    return RequestOutcome.SUCCESS, None


def _message_in(body: bytes) -> str:
    """The message of an error, whichever of the usual shapes it has; else its text."""
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _one_line(body) or "no message"
    for _ in range(3):
        if not isinstance(found, dict):
            break
        keys: Sequence[str] = [key for key in ("error", "message", "detail") if found.get(key)]
        if not keys:
            break
        found = found[keys[0]]
    return _one_line(found if isinstance(found, str) else body) or "no message"


def _one_line(text: str | bytes) -> str:
    """At most 300 printable characters."""
    raw = text[: 4 * _DETAIL_LENGTH].decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    line = " ".join("".join(c if c.isprintable() else " " for c in raw).split())
    return line if len(line) <= _DETAIL_LENGTH else line[: _DETAIL_LENGTH - 1] + "…"
