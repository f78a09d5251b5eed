"""What was observed: one record for each request, sample and counter. Times are monotonic integer ns."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["ClientHealth", "LoadRun", "MemorySample", "RequestOutcome", "RequestRecord", "ServerCounters"]


class RequestOutcome(str, enum.Enum):
    """How one request ended. Everything but ``SUCCESS`` is a failure of the named class."""

    SUCCESS = "success"
    CONNECTION_ERROR = "connection_error"
    """Connecting failed, or the connection broke before the answer was complete."""
    HTTP_ERROR = "http_error"
    """The status was not 200."""
    PROTOCOL_ERROR = "protocol_error"
    """The answer was not HTTP, not a stream of events, or an event was not JSON."""
    STREAM_ERROR = "stream_error"
    """An error object arrived inside a 200 stream (a crashed engine does that)."""
    TRUNCATED = "truncated"
    """The stream ended without ``[DONE]`` or without a finish reason."""
    NO_TOKENS = "no_tokens"
    """The stream was well formed and empty."""
    WRONG_LENGTH = "wrong_length"
    """Another number of tokens than ``ignore_eos`` had asked for."""
    TIMEOUT = "timeout"
    """Not finished within the workload's ``timeout_s``."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as the client saw it.

    Args:
        index: Place in the plan, from 0.
        outcome: Success, or the class of failure; ``detail`` says more in words.
        status: HTTP status, None when no status line arrived.
        intended_ns: When the schedule wanted it sent; in a closed loop the moment of dispatch.
        dispatched_ns: When the client began to send it.
        written_ns: When its bytes were handed to the kernel; None when it never was.
        first_byte_ns: When the first byte of the body arrived (TTFB).
        event_ns: Arrival of each event that carried text or tokens; role-only, usage and finish
            events are not among them.
        event_tokens: Output tokens carried by each of those events; None where events are fewer than tokens
            and the server did not send usage with every one.
        ended_ns: When the request was over, for whatever reason.
        input_tokens: Prompt tokens by the server's usage; None where it sent none.
        output_tokens: Generated tokens by the server's usage; never guessed.
        cached_tokens: Prompt tokens served from the prefix cache, where the server says so.
        finish_reason: As the server gave it.
        detail: One line for people; None on success.
    """

    index: int
    outcome: RequestOutcome
    status: int | None
    intended_ns: int
    dispatched_ns: int
    written_ns: int | None
    first_byte_ns: int | None
    event_ns: tuple[int, ...]
    event_tokens: tuple[int, ...] | None
    ended_ns: int
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    finish_reason: str | None
    detail: str | None

    @property
    def succeeded(self) -> bool:
        """True for a complete, correct answer only."""
        return self.outcome is RequestOutcome.SUCCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """The load process about itself: a starved client measures itself, not the engine.

    ``run_queue_wait_ns`` is the time it was ready to run and had no core (Linux schedstat), None
    where the system does not tell; ``loop`` names the event loop used.
    """

    wall_ns: int
    cpu_ns: int
    run_queue_wait_ns: int | None
    dispatch_lag_p99_ns: int
    loop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """Everything one drive of one workload observed, in order of ``index``."""

    records: tuple[RequestRecord, ...]
    started_ns: int
    ended_ns: int
    client: ClientHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Memory at one moment. None means it could not be read, which is not zero.

    ``host_bytes`` is the proportional set size of the engine's whole process tree, summed (a plain
    RSS sum counts shared pages once for each process); ``device_bytes`` the use of its GPUs.
    """

    at_ns: int
    host_bytes: int | None
    device_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCounters:
    """The server's own counters at one moment; None where it does not publish one.

    ``prefix_cache_queries`` and ``prefix_cache_hits`` count prompt tokens looked up in the prefix cache and found
    there; ``cache_block_tokens`` is the size of one of its blocks.
    """

    at_ns: int
    generation_tokens: int | None
    prompt_tokens: int | None
    prefix_cache_hits: int | None
    preemptions: int | None
    kv_cache_usage: float | None
    prefix_cache_queries: int | None = None
    cache_block_tokens: int | None = None
