"""Was the client the bottleneck? What its own delay may have done to the latencies it measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllmperf.domain.records import LoadRun

__all__ = ["Distortion", "distortion"]

_SHARE = 0.045
"""An error of 5 % is too much; a little less is suspected, as it is estimated from samples."""
_LEAST_S = 0.002
"""Two milliseconds are within what any client on a machine in use is late by, and too little to blame it for."""
_ENOUGH_SAMPLES = 80
"""Of the loop's lag, almost a second's: from fewer nothing is concluded."""
_WHOLE_CORE = 0.92
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

    A first token is stamped as late as the event loop attends to its socket. The lag of the loop, sampled a hundred
    times a second, is what that is on average (mean, median), and at worst (99th percentile). In an open loop the
    delay of sending counts too. Between the first token and the last such delays cancel on average: the error of
    one request's TPOT is what two lags differ by, spread over its tokens. A client that has used up its core is late
    all the time, and reads what piled up.

    Args:
        run: The run.
        values: Measured values by name (``ttft_mean``, ``tpot_p50``, …), in seconds.
        output_tokens: Mean tokens of an answer.
        open_loop: Whether arrivals had a schedule of their own.
    """
    client = run.client
    sent_s = client.dispatch_lag_mean_ns * _NS if open_loop else 0.0
    sent_p99_s = client.dispatch_lag_p99_ns * _NS if open_loop else 0.0
    lags = (client.loop_lag_mean_ns, client.loop_lag_p50_ns, client.loop_lag_p99_ns)
    mean_s, p50_s, p99_s = ((lag or 0) * _NS for lag in lags)
    per_token_s = (p99_s - p50_s) / max(1.0, output_tokens - 1)
    late_s = {
        "ttft_mean": mean_s + sent_s,
        "ttft_p50": p50_s + sent_s,
        "ttft_p99": p99_s + sent_p99_s,
        "tpot_mean": mean_s / max(1.0, output_tokens - 1),
        "tpot_p99": per_token_s,
    }
    enough = client.loop_lag_samples >= _ENOUGH_SAMPLES
    errors: dict[str, float] = {}
    doubtful: dict[str, str] = {}
    invalid: list[str] = []
    for name, late in late_s.items():
        value = values.get(name)
        if not value:
            continue
        errors[name] = round(late / value, 5)
        if not enough or late <= _LEAST_S or late <= _SHARE * value:
            continue
        said = f"the load process was late by {late * 1e3:.1f} ms of the {value * 1e3:.1f} ms"
        if name.endswith(("_mean", "_p50")):
            invalid.append(f"{said} of {name}: {_ADVICE}")
        else:
            doubtful[name] = f"{said}: {_ADVICE}"
    if enough and client.busiest_share > _WHOLE_CORE:
        used = f"the load process used {client.busiest_share:.0%} of a core"
        invalid.append(f"{used}, so it could not read as fast as the engine sent: {_ADVICE}")
    return Distortion(errors=errors, invalid=tuple(invalid[:2]), doubtful=doubtful)


_ADVICE = (
    "the client was the bottleneck. Give it more processes (Workload(workers=…)), or cores that nobody else uses, "
    "or ask for less load"
)
