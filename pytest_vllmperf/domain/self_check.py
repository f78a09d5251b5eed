"""Was the client the bottleneck? What its own delay may have done to the latencies it measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.records import (
    ClientHealth,
    LoadRun,
    RequestRecord,
    first_token_early_s,
    latency_s,
    time_per_output_token_s,
)
from pytest_vllmperf.domain.stats import reduce_samples

__all__ = ["BOTTLENECK", "Distortion", "distortion"]

_SHARE = 0.04
"""An error of 5 % is too much. What can be estimated of it falls short of it by a sixth to a quarter near there (the
benchmark ``self_check.py`` compares the two), so that less is suspected."""
_LEAST_S = 0.002
"""Two milliseconds are within what any client on a machine in use is late by, and too little to blame it for."""
_ENOUGH_SAMPLES = 80
"""Of the loop's lag, almost a second's: from a shorter run nothing is concluded."""
_ENOUGH_S = 0.8
"""The same where it is not the lag that counts."""
_WHOLE_CORE = 0.92
_HALF_CORE = 0.5
_NS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """How far the load processes' own delay may have moved what they measured.

    Args:
        errors: By statistic of a latency (``ttft_mean``, ``tpot_p99``), the estimated error as a share of its value.
        invalid: Reasons why the run says nothing about the engine; empty for a sound one.
        doubtful: Statistics that are not to be judged although the run is sound, with the reason.
    """

    errors: Mapping[str, float]
    invalid: tuple[str, ...]
    doubtful: Mapping[str, str]


def distortion(
    run: LoadRun, *, values: Mapping[str, float | None], output_tokens: float, open_loop: bool
) -> Distortion:
    """Estimate it from what the load processes told of themselves.

    Where arrivals bear the kernel's stamps a late read moves nothing, unless it brought several events at once: the
    first of them came earlier than the stamp they share. Elsewhere a token is stamped as late as the event loop attends
    to its socket. In an open loop the delay of sending counts too. A client that has used up its core is late all the
    time, and reads what piled up.

    Args:
        run: The run.
        values: Measured values by name (``ttft_mean``, ``tpot_p50``, …), in seconds.
        output_tokens: Mean tokens of an answer.
        open_loop: Whether arrivals had a schedule of their own.
    """
    client = run.client
    long = client.kernel_stamps and client.wall_ns * _NS >= _ENOUGH_S
    enough = long or client.loop_lag_samples >= _ENOUGH_SAMPLES
    late_s = _moved_by_shared_reads(run.records) if client.kernel_stamps else _moved_by_lag(client, output_tokens)
    if open_loop:
        late_s["ttft_mean"] += client.dispatch_lag_mean_ns * _NS
        late_s["ttft_p99"] += client.dispatch_lag_p99_ns * _NS
    advice = _advice(client)
    errors: dict[str, float] = {}
    doubtful: dict[str, str] = {}
    invalid: list[str] = []
    for name, late in late_s.items():
        value = values.get(name)
        if not value:
            continue
        errors[name] = round(late / value, 5)
        least_s = _LEAST_S / max(1.0, output_tokens - 1) if name.startswith("tpot") else _LEAST_S
        if not enough or late <= least_s or late <= _SHARE * value:
            continue
        said = f"the load process was late by {late * 1e3:.1f} ms of the {value * 1e3:.1f} ms"
        if name.endswith(("_mean", "_p50")):
            invalid.append(f"{said} of {name}: {advice}")
        else:
            doubtful[name] = f"{said}: {advice}"
    if enough and client.busiest_share > _WHOLE_CORE:
        used = f"the load process used {client.busiest_share:.0%} of a core"
        invalid.append(f"{used}, so it could not read as fast as the engine sent: {advice}")
    return Distortion(errors=errors, invalid=tuple(invalid[:2]), doubtful=doubtful)


def _moved_by_lag(client: ClientHealth, output_tokens: float) -> dict[str, float]:
    """Seconds by statistic, from the lag of the event loop.

    Sampled a hundred times a second, it is what a stamp is late by on average (mean, median), and at worst (99th
    percentile). Between the first token and the last such delays cancel on average: the error of one request's TPOT is
    what two lags differ by, spread over its tokens.
    """
    lags = (client.loop_lag_mean_ns, client.loop_lag_p50_ns, client.loop_lag_p99_ns)
    mean_s, p50_s, p99_s = ((lag or 0) * _NS for lag in lags)
    gaps = max(1.0, output_tokens - 1)
    return {
        "ttft_mean": mean_s,
        "ttft_p50": p50_s,
        "ttft_p99": p99_s,
        "tpot_mean": mean_s / gaps,
        "tpot_p99": (p99_s - p50_s) / gaps,
    }


def _moved_by_shared_reads(records: Sequence[RequestRecord]) -> dict[str, float]:
    """Seconds by statistic, from how much earlier each first token may have come than its stamp says."""
    done = [record for record in records if record.succeeded]
    gap_s = _usual_gap_s(done)
    ttft: list[tuple[float, float]] = []
    tpot: list[tuple[float, float]] = []
    for record in done:
        early_s = first_token_early_s(record, gap_s=gap_s)
        first_s = latency_s(record, "service_ttft", open_loop=False) or 0.0
        ttft.append((first_s, first_s - early_s))
        pace_s = time_per_output_token_s(record)
        if pace_s is not None and record.output_tokens is not None:
            tpot.append((pace_s, pace_s + early_s / max(1, record.output_tokens - 1)))
    moved: dict[str, float] = {}
    for name, pairs in (("ttft", ttft), ("tpot", tpot)):
        for statistic in ("mean", "p50", "p99"):
            stamped, earlier = (reduce_samples([pair[place] for pair in pairs], statistic) for place in (0, 1))
            moved[f"{name}_{statistic}"] = abs((stamped or 0.0) - (earlier or 0.0))
    return moved


def _usual_gap_s(records: Sequence[RequestRecord]) -> float | None:
    """Between two events of the answers that came in more than one read, the median of their means."""
    gaps = [
        (stamps[-1] - stamps[0]) * _NS / (len(stamps) - 1)
        for stamps in (record.event_ns for record in records)
        if len(stamps) > 1 and stamps[-1] > stamps[0]
    ]
    return reduce_samples(gaps, "p50")


BOTTLENECK = "the client was the bottleneck"
"""In every reason that lies in the client alone."""


def _advice(client: ClientHealth) -> str:
    """What helps: processes where it had its fill of work, cores where others had them."""
    waited_ns = client.run_queue_wait_ns
    if client.busiest_share < _HALF_CORE and waited_ns is not None:
        waited = waited_ns / max(1, client.wall_ns)
        return (
            f"{BOTTLENECK}. It used {client.busiest_share:.0%} of a core and waited for one "
            f"{waited:.0%} of the time, so more processes will not help: leave it a core that nothing else uses, "
            "neither the engine's threads nor other work"
        )
    return (
        f"{BOTTLENECK}. Give it more processes (Workload(workers=…)), or cores that nobody else uses, "
        "or ask for less load"
    )
