"""Who was slow: the engine, its API server, or the client, from the engine's own histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.records import LoadRun, RequestRecord, ServerCounters

__all__ = ["LatencySplit", "latency_split"]

_NS = 1e-9
_SLOW_SHARE = 0.10
_SLOW_GAP_S = 0.001
_SLOW_TTFT_S = 0.020
"""Ten percent of nothing is nothing: parsing and sending a request takes some milliseconds on any server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySplit:
    """Means over one run, in seconds; None where the server does not publish what is needed.

    Args:
        engine_ttft_s: TTFT by the server's own histogram: from its receiving the request to its having the token.
        queue_s, prefill_s: What of that was waiting for a place in the batch, and prefill.
        client_ttft_s: TTFT as the client saw it, from the written request.
        engine_gap_s: Time per token by the server's histogram of inter-token latency.
        client_gap_s: Time per token as the client saw it.
        client_lag_s: Mean delay of the client's event loop: its own share of ``client_ttft_s``; none where arrivals
            bear the kernel's stamps.
    """

    engine_ttft_s: float | None
    queue_s: float | None
    prefill_s: float | None
    client_ttft_s: float | None
    engine_gap_s: float | None
    client_gap_s: float | None
    client_lag_s: float

    @property
    def api_server_ttft_s(self) -> float | None:
        """What lies between engine and client: API server, serialisation, network."""
        if self.client_ttft_s is None or self.engine_ttft_s is None:
            return None
        return max(0.0, self.client_ttft_s - self.engine_ttft_s - self.client_lag_s)

    @property
    def api_server_gap_s(self) -> float | None:
        """What the API server added to each token."""
        if self.client_gap_s is None or self.engine_gap_s is None:
            return None
        return max(0.0, self.client_gap_s - self.engine_gap_s)

    @property
    def api_server_limited(self) -> str | None:
        """In words, where the API server is a noticeable part of what clients wait for."""
        said = []
        for what, added, whole, least in (
            ("a token", self.api_server_gap_s, self.client_gap_s, _SLOW_GAP_S),
            ("TTFT", self.api_server_ttft_s, self.client_ttft_s, _SLOW_TTFT_S),
        ):
            if added is not None and whole and added > max(least, _SLOW_SHARE * whole):
                said.append(f"{added * 1e3:.1f} of the {whole * 1e3:.1f} ms of {what}")
        if not said:
            return None
        return (
            f"the API server, not the engine, took {' and '.join(said)}: more of them may help "
            '(args={"api-server-count": …})'
        )

    def facts(self) -> dict[str, object]:
        """JSON-ready."""
        names = ("engine_ttft_s", "queue_s", "prefill_s", "api_server_ttft_s", "client_lag_s", "engine_gap_s")
        found = {name: getattr(self, name) for name in (*names, "api_server_gap_s")}
        return {name: None if value is None else round(value, 6) for name, value in found.items()}


def latency_split(
    run: LoadRun, done: Sequence[RequestRecord], before: ServerCounters | None, after: ServerCounters | None
) -> LatencySplit:
    """Compare what the client saw with what the server's histograms grew by between two scrapes."""
    ttft = [(r.event_ns[0] - (r.written_ns or r.dispatched_ns)) * _NS for r in done]
    gaps = [(r.event_ns[-1] - r.event_ns[0], r.output_tokens - _in_first(r)) for r in done if r.output_tokens]
    after_first = sum(tokens for _, tokens in gaps)
    grown = _growth(before, after)
    generated = _generated(before, after)
    itl_s, _ = grown.get("itl", (None, 0))
    gapped = 0 if generated is None else generated - len(done)
    per_token = itl_s / gapped if itl_s is not None and gapped > 0 else None
    return LatencySplit(
        engine_ttft_s=_mean(grown, "ttft"),
        queue_s=_mean(grown, "queue"),
        prefill_s=_mean(grown, "prefill"),
        client_ttft_s=sum(ttft) / len(ttft) if ttft else None,
        engine_gap_s=per_token,
        client_gap_s=sum(ns for ns, _ in gaps) * _NS / after_first if after_first > 0 else None,
        client_lag_s=0.0 if run.client.kernel_stamps else (run.client.loop_lag_mean_ns or 0) * _NS,
    )


def _in_first(record: RequestRecord) -> int:
    return record.event_tokens[0] if record.event_tokens else 1


def _generated(before: ServerCounters | None, after: ServerCounters | None) -> int | None:
    if before is None or after is None or before.generation_tokens is None or after.generation_tokens is None:
        return None
    return after.generation_tokens - before.generation_tokens


def _growth(before: ServerCounters | None, after: ServerCounters | None) -> Mapping[str, tuple[float, float]]:
    """Seconds and observations each histogram grew by."""
    if before is None or after is None:
        return {}
    grown: dict[str, tuple[float, float]] = {}
    for name, (total_s, count) in after.latencies.items():
        earlier_s, earlier = before.latencies.get(name, (0.0, 0.0))
        if count > earlier and total_s >= earlier_s:
            grown[name] = total_s - earlier_s, count - earlier
    return grown


def _mean(grown: Mapping[str, tuple[float, float]], name: str) -> float | None:
    total_s, count = grown.get(name, (0.0, 0.0))
    return total_s / count if count else None
