"""The unmeasured opening of a measurement: rounds of the same shape until the engine has settled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pytest_vllmperf.domain.prompts import Conversations, RandomPrompts, SharedPrefix, TraceReplay
from pytest_vllmperf.domain.records import LoadRun, latency_s
from pytest_vllmperf.domain.workload import Workload

__all__ = ["WarmUp", "warm_up", "warm_up_of"]

_WARM_UP_TOKENS = 64
_MOST_ROUNDS = 4
_MOST_S = 15.0
"""No further round is begun after this long."""
_MOST_SHARE = 0.5
"""Of the tokens that will be measured, all rounds together: a short measurement is not worth a long opening."""
_SETTLED = {"service_ttft": 0.25, "tpot": 0.10}
"""How much a median may still move from one round to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """How it went.

    Args:
        rounds: How many there were.
        moved: By latency, the change of its median from the last round but one to the last, as a share; empty after a
            single round.
        events_per_s: Token events of the last round per second of it.
    """

    rounds: int
    moved: Mapping[str, float]
    events_per_s: float

    @property
    def doubt(self) -> str | None:
        """In words, where the engine had not settled when the measurement began."""
        far = [f"{name.removeprefix('service_')} by {by:.0%}" for name, by in self.moved.items() if by > _SETTLED[name]]
        return (
            f"not settled after {self.rounds} rounds of warm-up: the last one moved {', '.join(far)}" if far else None
        )


def warm_up(workload: Workload, drive: Callable[[Workload, str], LoadRun]) -> WarmUp:
    """Drive rounds until TTFT and TPOT hold still from one to the next.

    There are four at most, together at most half as much work as the measurement unless one alone is more, and none
    is begun after 15 s.
    ``drive`` runs a workload with the prompts of a named part: every round has its own.
    """
    opening = warm_up_of(workload)
    share = opening.requests * opening.output_tokens / (workload.requests * (workload.output_tokens or _WARM_UP_TOKENS))
    most = min(_MOST_ROUNDS, max(1, int(_MOST_SHARE / share)))
    medians: list[dict[str, float]] = []
    moved: dict[str, float] = {}
    spent_ns = 0
    while True:
        run = drive(opening, f"warm-up-{len(medians)}" if medians else "warm-up")
        medians.append(_medians(run))
        spent_ns += run.ended_ns - run.started_ns
        if len(medians) > 1:
            before, now = medians[-2:]
            moved = {name: abs(now[name] / before[name] - 1) for name in now if before.get(name)}
        settled = bool(moved) and all(by <= _SETTLED[name] for name, by in moved.items())
        if settled or not medians[-1] or len(medians) == most or spent_ns * 1e-9 > _MOST_S:
            events = sum(len(record.event_ns) for record in run.records)
            lasted_s = (run.ended_ns - run.started_ns) * 1e-9
            return WarmUp(rounds=len(medians), moved=moved, events_per_s=events / lasted_s if lasted_s > 0 else 0.0)


def warm_up_of(workload: Workload, trace_tokens: Sequence[int] = ()) -> Workload:
    """One round: the workload's prompt length, one request for each slot, all at once.

    Every shared prefix is among the prompts, so that the measured requests find it in the cache. Answers are cut
    at 64 tokens: that reaches every batch size the workload will, at a fraction of its time.

    Args:
        workload: What will be measured.
        trace_tokens: Prompt lengths of its trace, where it has one; read from the file when left out.
    """
    slots = workload.max_concurrency or 2
    source, input_tokens, count = workload.prompts, workload.input_tokens, min(workload.requests, slots)
    output_tokens = workload.output_tokens
    if isinstance(source, SharedPrefix):
        source, count = replace(source, share=1.0), max(count, source.groups)
    elif isinstance(source, Conversations):  # the last turn's length, and as many at once as there are conversations
        input_tokens = source.prompt_tokens(source.turns - 1, input_tokens=input_tokens, output_tokens=output_tokens)
        source = RandomPrompts()
    elif isinstance(source, TraceReplay):
        input_tokens = round(median(trace_tokens or _lengths(workload)))
        source, output_tokens = RandomPrompts(), _WARM_UP_TOKENS
    return replace(
        workload,
        prompts=source,
        input_tokens=input_tokens,
        requests=count,
        request_rate=None,
        burst_size=1,
        ramp_s=0.0,
        max_concurrency=slots,
        max_seconds=None,
        until=None,
        max_error_rate=1.0,
        output_tokens=min(output_tokens, _WARM_UP_TOKENS),
    )


def _lengths(workload: Workload) -> list[int]:
    from pytest_vllmperf.load.trace_files import read_trace

    return [entry.input_tokens for entry in read_trace(workload) or ()]


def _medians(run: LoadRun) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in _SETTLED:
        samples = [latency_s(record, name, open_loop=False) for record in run.records if record.succeeded]
        known = [value for value in samples if value is not None]
        if known:
            found[name] = median(known)
    return found
