"""What the load process is told and what it answers: msgpack frames over its stdin and stdout."""

from __future__ import annotations

import math
from io import RawIOBase
from typing import Any, Union

import msgspec

from pytest_vllmperf.domain.prompts import PROMPT_SOURCES, Conversations, PromptSource
from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.prompt_files import FilePrompt

__all__ = [
    "FrameReader",
    "Plan",
    "Progress",
    "Result",
    "deadline_s",
    "decode_message",
    "decode_plan",
    "encode_frame",
    "read_frame",
]

_LENGTH_BYTES = 8
_START_UP_S = 60.0
"""Allowance for what surrounds the requests: start, drawing prompts, reading the answers afterwards."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the load process needs. It travels on stdin only: it holds the API key."""

    workload: Workload
    base_url: str
    model: str
    api_key: Union[str, None]
    token_range: tuple[int, int]
    seed: int
    deadline_s: float
    report_progress: bool
    lines: Union[tuple[FilePrompt, ...], None] = None
    """The prompts of the workload's file: read by the parent, whose directory and whose errors are the user's."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Requests over so far, of all planned."""

    finished: int
    planned: int


class Result(msgspec.Struct, frozen=True, tag="result"):
    """The last frame."""

    run: LoadRun


def deadline_s(workload: Workload) -> float:
    """Seconds after which a drive of ``workload`` cannot still be sound, even if every request times out.

    With a cap on requests in flight they may have to time out one wave after the other; arrivals are allowed
    four times their mean span, as gamma gaps may be far longer than their mean.
    """
    waves = math.ceil(workload.requests / workload.max_concurrency) if workload.max_concurrency else 1
    if isinstance(workload.prompts, Conversations):
        waves += workload.prompts.turns  # the last conversation may have to end alone
    arrivals = 4.0 * workload.requests / workload.request_rate if workload.request_rate else 0.0
    return _START_UP_S + arrivals + waves * workload.timeout_s


def encode_frame(message: Plan | Progress | Result) -> bytes:
    """One message, preceded by its length."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def decode_plan(body: bytes) -> Plan:
    """The reverse of :func:`encode_frame` for a plan.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return msgspec.msgpack.decode(body, type=Plan, dec_hook=_prompt_source)


def _prompt_source(wanted: type, raw: Any) -> PromptSource:
    """Dataclasses travel without their name; ``kind`` tells which it was."""
    if wanted is not PromptSource:
        raise NotImplementedError(f"no way to decode {wanted!r}")
    values = dict(raw)
    return PROMPT_SOURCES[values.pop("kind")](**values)


def decode_message(body: bytes) -> Progress | Result:
    """A message of the load process.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return _MESSAGES.decode(body)


_MESSAGES: msgspec.msgpack.Decoder[Progress | Result] = msgspec.msgpack.Decoder(Union[Progress, Result])


_READ_AT_MOST = 1 << 20


def read_frame(stream: RawIOBase) -> bytes | None:
    """The next frame's body, or None when the stream ended (also within a frame). Reads not a byte beyond it."""
    header = _read_exactly(stream, _LENGTH_BYTES)
    return None if header is None else _read_exactly(stream, int.from_bytes(header, "big"))


def _read_exactly(stream: RawIOBase, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        data = stream.read(min(count - len(parts), _READ_AT_MOST))
        if not data:
            return None
        parts += data
    return bytes(parts)


class FrameReader:
    """Frames out of reads of any size.

    Raises:
        ValueError: On a length no sound process would announce.
    """

    _LONGEST = 1 << 36

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; the bodies of the frames they complete."""
        self._buffer += data
        bodies: list[bytes] = []
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > self._LONGEST:
                raise ValueError(f"a frame of {length} bytes")
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[_LENGTH_BYTES:end]))
            del self._buffer[:end]
        return bodies
