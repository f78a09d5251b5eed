"""What an answer says: raw bytes and stamps become a RequestRecord. Pure, and never raises on bad answers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Union

import msgspec

from pytest_vllmperf.domain.records import RequestOutcome, RequestRecord
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.http_answer import HttpReader
from pytest_vllmperf.load.sse import EventReader, EventTooLong
from pytest_vllmperf.load.token_chunks import TokenChunk

__all__ = ["AnswerReading", "record_of"]

_DETAIL_LENGTH = 300
_Count = Annotated[int, msgspec.Meta(ge=0)]
_BAD_FINISHES = ("abort", "error")
_MOST_TOKENS = 2**31 - 1
_STREAM = "text/event-stream"
_PATIENCE = 16
"""So many reads in a row may be something else before a stream's usual chunk is looked for no longer."""


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

    def answers(self) -> bool:
        """Whether it carries what comes after the thinking, if any thinking is told apart."""
        delta = self.delta
        return bool(self.text) if delta is None else bool(delta.content or delta.tool_calls or self.text)


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

    def is_just_a_token(self) -> bool:
        """Whether all it tells is one unfinished choice; without usage, that has brought something."""
        choices = self.choices or ()
        return self.usage is None and len(choices) == 1 and choices[0].finish_reason is None


_decode_event = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class _Told:
    """What the events of one stream added up to so far."""

    event_ns: array[int] = field(default_factory=lambda: array("q"))
    event_tokens: array[int] = field(default_factory=lambda: array("i"))
    first_answer_ns: int | None = None
    told: int = 0
    events: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    error: str | None = None
    malformed: str | None = None
    just_a_token: bool = False
    """The last event brought text, and said nothing else that counts."""

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
            if self.first_answer_ns is None and choice.answers():
                self.first_answer_ns = stamp
            self.finish_reason = choice.finish_reason or self.finish_reason
        if carries:
            self.just_a_token = event.is_just_a_token()
            self.event_ns.append(stamp)
            if after is not None:
                self.event_tokens.append(min(max(after - before, -1), _MOST_TOKENS))
                self.told += 1

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


class AnswerReading:
    """Reads one answer, at once or bit by bit; what it keeps of an event is 12 bytes."""

    __slots__ = ("_events", "_first_byte_ns", "_http", "_patience", "_token_chunk", "_told")

    def __init__(self) -> None:
        self._http = HttpReader(self._take_piece)
        self._events = EventReader()
        self._told = _Told()
        self._first_byte_ns: int | None = None
        self._token_chunk: TokenChunk | None = None
        self._patience = _PATIENCE

    def feed(self, reads: Sequence[tuple[int, bytes]]) -> None:
        """Take the next reads."""
        place = 0
        while place < len(reads) and self._patience:
            ready = self._is_between_tokens()
            if ready and self._token_chunk is not None:
                place += self._take_tokens(self._token_chunk, reads, place)
                if place == len(reads):
                    break
            events, self._told.just_a_token = self._told.events, False
            self._http.feed((reads[place],))
            alone = self._told.events == events + 1 and self._told.just_a_token
            if ready and alone and self._is_between_tokens():
                self._token_chunk = TokenChunk.of(reads[place][1])
            self._patience -= 1
            place += 1
        self._http.feed(reads[place:])

    def _take_tokens(self, token_chunk: TokenChunk, reads: Sequence[tuple[int, bytes]], place: int) -> int:
        """How many reads from ``place`` on are the next token and nothing else; they are taken."""
        taken = token_chunk.taken(reads, place, self._told.event_ns) - place
        if taken:
            self._told.events += taken
            self._patience = _PATIENCE
        return taken

    def _is_between_tokens(self) -> bool:
        """Whether all that was read is understood, and the next read may begin with the next chunk and event."""
        http, told = self._http, self._told
        return (
            http.between_chunks
            and self._events.between_events
            and http.status == 200
            and http.content_type.startswith(_STREAM)
            and not (told.done or told.malformed)
        )

    def record(self, exchange: Exchange, *, output_tokens: int, exact: bool = True) -> RequestRecord:
        """Judge the whole answer; see :func:`record_of`. Call it once, after the last read."""
        http, told = self._http, self._told
        if http.complete and http.status == 200 and not told.done and not told.malformed:
            last = self._events.flush()
            if last is not None:
                self._take_event(last)
        outcome, detail = _judge(exchange, http, told, asked=output_tokens, exact=exact)
        return RequestRecord(
            index=exchange.index,
            outcome=outcome,
            status=http.status,
            intended_ns=exchange.intended_ns,
            dispatched_ns=exchange.dispatched_ns,
            written_ns=exchange.written_ns,
            first_byte_ns=self._first_byte_ns,
            event_ns=tuple(told.event_ns),
            event_tokens=told.exact_event_tokens(),
            ended_ns=exchange.ended_ns,
            input_tokens=told.input_tokens,
            output_tokens=told.output_tokens,
            cached_tokens=told.cached_tokens,
            finish_reason=told.finish_reason,
            detail=detail,
            first_answer_ns=told.first_answer_ns,
            first_unread_ns=self._first_unread_ns(exchange),
        )

    def _first_unread_ns(self, exchange: Exchange) -> int:
        first_ns = self._told.event_ns[:1]
        return next((unread_ns for at_ns, unread_ns in exchange.unread if first_ns and at_ns == first_ns[0]), 0)

    def _take_piece(self, piece: bytes) -> None:
        """A piece of the body; after the end of the stream, and after nonsense, it belongs to nobody."""
        told = self._told
        if self._first_byte_ns is None:
            self._first_byte_ns = self._http.stamp_ns
        if self._http.status != 200 or told.done or told.malformed:
            return
        try:
            for data in self._events.feed(piece):
                self._take_event(data)
                if told.done or told.malformed:
                    return
        except EventTooLong as error:
            told.malformed = str(error)

    def _take_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._told.done = True
            return
        try:
            self._told.take(self._http.stamp_ns, _decode_event(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._told.malformed = f"an event is not what the API sends ({error}): {_one_line(data)}"


def record_of(exchange: Exchange, *, output_tokens: int, exact: bool = True) -> RequestRecord:
    """Judge one finished exchange, of which ``output_tokens`` tokens had been asked.

    Success needs all of: HTTP 200, a complete stream of well-formed events, no error object, at least one event
    that carries tokens, a finish reason, ``[DONE]``, and the asked number of tokens where the server counts them
    and ``ignore_eos`` was sent (``exact``; otherwise at most as many).
    An event carries tokens when its text, content, reasoning or tool calls are not empty, or when the running
    usage grew with it.
    """
    reading = exchange.reading or AnswerReading()
    reading.feed(exchange.reads)
    return reading.record(exchange, output_tokens=output_tokens, exact=exact)


def _judge(
    exchange: Exchange, http: HttpReader, told: _Told, *, asked: int, exact: bool
) -> tuple[RequestOutcome, str | None]:
    """The first of these that holds names the outcome; the engine's own words go before ours."""
    if exchange.outcome is RequestOutcome.TIMEOUT:
        return RequestOutcome.TIMEOUT, exchange.detail
    if http.status is not None and http.status != 200:
        return RequestOutcome.HTTP_ERROR, _one_line(f"HTTP {http.status}: {_message_in(http.opening)}")
    if told.error is not None:
        return RequestOutcome.STREAM_ERROR, _one_line(f"error inside the stream: {told.error}")
    if told.malformed is not None:
        return RequestOutcome.PROTOCOL_ERROR, _one_line(told.malformed)
    if exchange.outcome is not None:
        return exchange.outcome, exchange.detail
    if http.error is not None:
        return RequestOutcome.PROTOCOL_ERROR, _one_line(f"not HTTP: {http.error}")
    return _judge_stream(http, told, asked=asked, exact=exact)


def _judge_stream(http: HttpReader, told: _Told, *, asked: int, exact: bool) -> tuple[RequestOutcome, str | None]:
    foreign = http.content_type and not http.content_type.startswith(_STREAM)
    if foreign or (http.opening and not (told.events or told.done)):
        kind = http.content_type or "no content type"
        return RequestOutcome.PROTOCOL_ERROR, f"not a stream of events ({kind}): {_one_line(http.opening)}"
    if told.finish_reason in _BAD_FINISHES:
        return RequestOutcome.STREAM_ERROR, f"the engine gave up: finish_reason {told.finish_reason!r}"
    missing = [name for name, seen in (("finish_reason", told.finish_reason), ("[DONE]", told.done)) if not seen]
    if missing:
        return RequestOutcome.TRUNCATED, f"the stream ended without {' and without '.join(missing)}"
    if not told.event_ns:
        return RequestOutcome.NO_TOKENS, "the stream is well formed and carries no token"
    if told.output_tokens is not None and (told.output_tokens != asked if exact else told.output_tokens > asked):
        how = f"instead of {asked}, although ignore_eos was sent" if exact else f"where at most {asked} were asked"
        return RequestOutcome.WRONG_LENGTH, f"{told.output_tokens} tokens {how}"
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
