"""What the load processes are told and what they answer: msgpack frames over their stdin and stdout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Union

import msgspec

from pytest_vllmperf.domain.prompts import PROMPT_SOURCES, Conversations, PromptSource
from pytest_vllmperf.domain.records import LoadRun, RequestRecord
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.prompt_files import FilePrompt
from pytest_vllmperf.load.trace_files import TraceEntry

__all__ = [
    "CallOff",
    "FrameReader",
    "Order",
    "Plan",
    "Progress",
    "Ready",
    "Records",
    "Result",
    "Start",
    "Stop",
    "deadline_s",
    "decode_message",
    "decode_order",
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
    lines: Union[tuple[FilePrompt, ...], None] = None
    """The prompts of the workload's file: read by the parent, whose directory and whose errors are the user's."""
    trace: Union[tuple[TraceEntry, ...], None] = None
    """The entries of the workload's trace, likewise."""
    worker: int = 0
    workers: int = 1
    """Which of how many load processes this is. Each makes the whole plan and sends its share."""
    proxy: Union[str, None] = None
    """URL of the proxy to go through."""
    keep_alive: bool = True
    """Whether a connection carries further requests once its answer is over."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Everything is prepared, and connections are open."""

    schedule_hash: str


class Progress(msgspec.Struct, frozen=True, tag="progress", kw_only=True):
    """How far it is: requests over and failed, reads with tokens so far, and what is new since the last time.

    ``ttft_s`` holds the time to the first read of a body of requests that ended; ``samples`` the latencies the
    workload's ``until`` asks about. ``failed`` counts what shows at once: other faults are found after the run.
    """

    finished: int
    failed: int = 0
    reads: int = 0
    ttft_s: tuple[float, ...] = ()
    samples: tuple[float, ...] = ()


class Records(msgspec.Struct, frozen=True, tag="records"):
    """Some of the records, after the run."""

    records: tuple[RequestRecord, ...]


class Result(msgspec.Struct, frozen=True, tag="result"):
    """The last frame: the run without its records."""

    run: LoadRun


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The clock starts at this moment."""

    at_ns: int


class Stop(msgspec.Struct, frozen=True, tag="stop", kw_only=True):
    """Send nothing more. ``abandon``: give up soon what is in flight."""

    reason: str
    abandon: bool


class CallOff(msgspec.Struct, frozen=True, tag="call-off"):
    """End everything at once: what is not finished is a failed request that says why."""

    reason: str


Message = Union[Ready, Progress, Records, Result]
Order = Union[Start, Stop, CallOff]


def deadline_s(workload: Workload, trace: Sequence[TraceEntry] | None = None) -> float:
    """Seconds after which a drive of ``workload`` cannot still be sound, even if every request times out.

    With a cap on requests in flight they may have to time out one wave after the other; arrivals are allowed
    four times their mean span, as gamma gaps may be far longer than their mean.
    """
    waves = math.ceil(workload.requests / workload.max_concurrency) if workload.max_concurrency else 1
    if isinstance(workload.prompts, Conversations):
        waves += workload.prompts.turns  # the last conversation may have to end alone
    arrivals = 4.0 * workload.requests / workload.request_rate if workload.request_rate else 0.0
    if trace:
        arrivals = trace[-1].at_ns * 1e-9
    sending = workload.ramp_s + arrivals + waves * workload.timeout_s
    if workload.max_seconds is not None:
        sending = min(sending, workload.max_seconds + workload.timeout_s)
    return _START_UP_S + sending


def encode_frame(message: Plan | Message | Order) -> bytes:
    """One message, preceded by its length."""
    body = _encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"no way to encode {value!r}")


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


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


def decode_message(body: bytes) -> Message:
    """A message of a load process.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return _MESSAGES.decode(body)


def decode_order(body: bytes) -> Order:
    """An order to a load process.

    Raises:
        msgspec.MsgspecError: It is none.
    """
    return _ORDERS.decode(body)


_MESSAGES: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_ORDERS: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame's body, or None when the stream ended (also within a frame)."""
    header = _read(stream, _LENGTH_BYTES)
    return None if header is None else _read(stream, int.from_bytes(header, "big"))


def _read(stream: BinaryIO, length: int) -> bytes | None:
    pieces: list[bytes] = []
    while length:
        piece = stream.read(length)
        if not piece:
            return None
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


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
