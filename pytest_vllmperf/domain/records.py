"""What was observed: one record for each request, sample and counter. Times are monotonic integer ns."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile

__all__ = [
    "ClientHealth",
    "LoadRun",
    "MemorySample",
    "RequestOutcome",
    "RequestRecord",
    "ServerCounters",
    "first_token_early_s",
    "latency_s",
    "time_per_output_token_s",
]

_NS = 1e-9


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
        first_answer_ns: Arrival of the first event that carried the answer itself (content, text or a tool call), not
            reasoning that comes before it.
        first_unread_ns: For how long the client had not been reading before the first of ``event_ns``, where that stamp
            is the kernel's: of several events that share it the first may have come so much earlier.
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
    first_answer_ns: int | None = None
    first_unread_ns: int = 0

    @property
    def succeeded(self) -> bool:
        """True for a complete, correct answer only."""
        return self.outcome is RequestOutcome.SUCCESS


def time_per_output_token_s(record: RequestRecord) -> float | None:
    """(last - first token event) / (output tokens - tokens in the first event), in seconds.

    Dividing by ``output tokens - 1``, as is common, charges the tokens that came with the first
    event to the gaps after it; that is done only where the server does not say how many those were.
    None without usage, or when everything arrived in one event.
    """
    if record.output_tokens is None or len(record.event_ns) < 2:
        return None
    in_first = record.event_tokens[0] if record.event_tokens else 1
    rest = record.output_tokens - in_first
    if rest < 1:
        return None
    return (record.event_ns[-1] - record.event_ns[0]) * _NS / rest


def latency_s(record: RequestRecord, metric: str, *, open_loop: bool) -> float | None:
    """A latency of one complete answer, in seconds; None where it has none.

    Args:
        record: The answer.
        metric: ``ttft``, ``e2el`` (in an open loop from the intended send, else from the written request),
            ``service_ttft``, ``service_e2el`` (always from the written request) or ``tpot``.
        open_loop: Whether arrivals follow a schedule of their own.
    """
    if metric == "tpot":
        return time_per_output_token_s(record)
    written_ns = record.written_ns if record.written_ns is not None else record.dispatched_ns
    origin_ns = record.intended_ns if open_loop and not metric.startswith("service_") else written_ns
    if not record.event_ns:
        return None
    until_ns = record.event_ns[0] if metric.endswith("ttft") else record.event_ns[-1]
    return (until_ns - origin_ns) * _NS


def first_token_early_s(record: RequestRecord, *, gap_s: float | None = None) -> float:
    """How much earlier the first token may have come than its stamp says, in seconds.

    The kernel's stamp of a read is that of its last bytes. A read that came when it was due is right for all that it
    brought, and so is one of a single event. Of several events that were kept waiting, the first is supposed to have
    come as much earlier as the pace of the rest of the answer says, and not before the client had looked away.

    Args:
        record: The answer.
        gap_s: Between two events of other answers, for one that came in a single read.
    """
    stamps = record.event_ns
    if not record.first_unread_ns or len(stamps) < 2 or stamps[1] != stamps[0]:
        return 0.0
    written_ns = record.written_ns if record.written_ns is not None else record.dispatched_ns
    most_s = min(record.first_unread_ns, stamps[0] - written_ns) * _NS
    shared = sum(1 for _ in takewhile(lambda at_ns: at_ns == stamps[0], stamps))
    rest = len(stamps) - shared
    pace_s = (stamps[-1] - stamps[0]) * _NS / rest if rest else gap_s
    return most_s if pace_s is None else min(most_s, (shared - 1) * pace_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """The load processes about themselves: a starved client measures itself, not the engine.

    Args:
        wall_ns: How long the load ran.
        cpu_ns: CPU time of all load processes in it.
        run_queue_wait_ns: Time one was ready to run and had no core (Linux schedstat; of several processes the worst);
            None where the system does not tell.
        dispatch_lag_p99_ns: Delay between the moment a request could be sent and its dispatch.
        loop: Name of the event loop used.
        loop_lag_samples: How many samples of the event loop's lag there are.
        loop_lag_mean_ns, loop_lag_p50_ns, loop_lag_p99_ns: How late the event loop attended to something that was
            ready, sampled a hundred times a second: what a stamp may be late by. None where it was not sampled.
        dispatch_lag_mean_ns: As ``dispatch_lag_p99_ns``, the mean.
        workers: How many load processes there were.
        busiest_share: CPU share of the busiest of them; 1 is a whole core.
        shared_reads: Share of token events that came in one read with the event before them.
        kernel_stamps: Whether arrivals bear the kernel's stamps, which do not depend on when the client read them.
    """

    wall_ns: int
    cpu_ns: int
    run_queue_wait_ns: int | None
    dispatch_lag_p99_ns: int
    loop: str
    loop_lag_samples: int = 0
    loop_lag_mean_ns: int | None = None
    loop_lag_p50_ns: int | None = None
    loop_lag_p99_ns: int | None = None
    dispatch_lag_mean_ns: int = 0
    workers: int = 1
    busiest_share: float = 0.0
    shared_reads: float = 0.0
    kernel_stamps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """Everything one drive of one workload observed, in order of ``index``.

    Args:
        records: One for each request that was sent and came to an end.
        started_ns, ended_ns: When the clock started and stopped.
        client: The load processes about themselves.
        schedule_hash: Names what was to be sent and when; equal for equal prompts, lengths and arrivals.
        stopped: Why not everything was sent, where a stop rule ended the run early.
        unsent: Planned requests that were never sent, because of that.
        abandoned: Requests in flight that were given up when too many had failed; they have no record.
    """

    records: tuple[RequestRecord, ...]
    started_ns: int
    ended_ns: int
    client: ClientHealth
    schedule_hash: str = ""
    stopped: str | None = None
    unsent: int = 0
    abandoned: int = 0


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
    there; ``cache_block_tokens`` is the size of one of its blocks. ``requests_finished`` counts those that ended well,
    ``requests_waiting`` is its queue now.
    ``latencies`` holds seconds and observations so far of the server's own histograms, by ``ttft``, ``itl``, ``queue``,
    ``prefill`` and ``decode``.
    """

    at_ns: int
    generation_tokens: int | None
    prompt_tokens: int | None
    prefix_cache_hits: int | None
    preemptions: int | None
    kv_cache_usage: float | None
    prefix_cache_queries: int | None = None
    cache_block_tokens: int | None = None
    requests_finished: int | None = None
    requests_waiting: int | None = None
    latencies: Mapping[str, tuple[float, float]] = field(default_factory=dict)
