"""Was the client the bottleneck, and who else was slow: on records made by hand."""

from dataclasses import replace

import pytest
from streams import MS, answered, counters, limit, load_run

from pytest_vllmperf.domain.latency_split import latency_split
from pytest_vllmperf.domain.records import ClientHealth, LoadRun, RequestRecord, first_token_early_s
from pytest_vllmperf.domain.self_check import Distortion, distortion
from pytest_vllmperf.domain.summary import summarize
from pytest_vllmperf.domain.thresholds import Outcome, judge
from pytest_vllmperf.domain.workload import Workload

CLOSED = Workload(name="closed", input_tokens=4, output_tokens=11, requests=4, max_concurrency=2)
VALUES = {"ttft_mean": 0.100, "ttft_p50": 0.090, "ttft_p99": 0.200, "tpot_mean": 0.020, "tpot_p99": 0.025}


def health(**changes: object) -> ClientHealth:
    base = load_run().client
    return replace(
        base,
        **{"loop_lag_samples": 500, "loop_lag_mean_ns": 0, "loop_lag_p50_ns": 0, "loop_lag_p99_ns": 0, **changes},
    )


def estimated(*, open_loop: bool = False, output_tokens: float = 11.0, **changes: object) -> Distortion:
    run = replace(load_run(), client=health(**changes))
    return distortion(run, values=VALUES, output_tokens=output_tokens, open_loop=open_loop)


def test_a_client_that_is_never_late_distorts_nothing() -> None:
    sound = estimated(loop_lag_mean_ns=300_000, loop_lag_p50_ns=100_000, loop_lag_p99_ns=1_500_000)
    assert (sound.invalid, sound.doubtful) == ((), {})
    assert sound.errors["ttft_mean"] == pytest.approx(0.003)


def test_a_client_late_on_average_makes_the_run_invalid_with_the_advice() -> None:
    late = estimated(loop_lag_mean_ns=6 * MS, loop_lag_p50_ns=MS, busiest_share=0.7)
    said = (
        "the load process was late by 6.0 ms of the 100.0 ms of ttft_mean: the client was the bottleneck. Give it more "
        "processes (Workload(workers=…)), or cores that nobody else uses, or ask for less load"
    )
    assert late.invalid == (said,)
    assert late.errors["ttft_mean"] == pytest.approx(0.06)


def test_a_client_that_waits_for_its_core_is_not_told_to_take_more_processes() -> None:
    late = estimated(loop_lag_mean_ns=6 * MS, busiest_share=0.05, run_queue_wait_ns=620 * MS)
    assert late.invalid[0].endswith(
        "the client was the bottleneck. It used 5% of a core and waited for one 62% of the time, so more processes "
        "will not help: leave it a core that nothing else uses, neither the engine's threads nor other work"
    )


def test_a_client_late_now_and_then_spoils_the_upper_percentile_only() -> None:
    late = estimated(loop_lag_mean_ns=200_000, loop_lag_p99_ns=30 * MS)
    assert late.invalid == ()
    assert list(late.doubtful) == ["ttft_p99", "tpot_p99"]
    assert late.errors["tpot_p99"] == pytest.approx(0.003 / 0.025)


def test_late_sending_counts_in_an_open_loop_only() -> None:
    assert estimated(dispatch_lag_mean_ns=9 * MS).invalid == ()
    assert "ttft_mean" in estimated(dispatch_lag_mean_ns=9 * MS, open_loop=True).invalid[0]


# ---------------------------------------------------------------------- stamps of the kernel


def read_at_once(shared: int, *, unread_ms: float) -> RequestRecord:
    """Eleven events 10 ms apart from 100 ms on, of which the first ``shared`` came in one read."""
    stamps = tuple(100.0 + 10.0 * max(place, shared - 1) for place in range(11))
    record = answered(events_ms=stamps, tokens=(1,) * 11, written_ms=0.0)
    return replace(record, first_unread_ns=round(unread_ms * MS))


@pytest.mark.parametrize(
    ("shared", "unread_ms", "early_s"),
    [(1, 40.0, 0.0), (4, 0.0, 0.0), (4, 300.0, 0.030), (4, 12.0, 0.012), (2, 50.0, 0.010), (11, 150.0, 0.150)],
)
def test_only_what_was_kept_waiting_together_may_have_come_earlier(
    shared: int, unread_ms: float, early_s: float
) -> None:
    assert first_token_early_s(read_at_once(shared, unread_ms=unread_ms)) == pytest.approx(early_s)


def test_an_answer_in_a_single_read_is_supposed_to_have_come_at_the_pace_of_others() -> None:
    assert first_token_early_s(read_at_once(11, unread_ms=150.0), gap_s=0.005) == pytest.approx(0.050)


def stamped(*records: RequestRecord) -> LoadRun:
    late = health(loop_lag_mean_ns=30 * MS, loop_lag_p50_ns=20 * MS, loop_lag_p99_ns=90 * MS, kernel_stamps=True)
    return replace(load_run(*records), client=late)


def test_with_the_kernels_stamps_a_late_read_moves_nothing() -> None:
    run = stamped(*(read_at_once(1, unread_ms=30.0) for _ in range(20)))
    summary = summarize(run, engine="e", model="m", workload=CLOSED)
    assert summary.invalid == ()
    assert set(summary.facts["client_error_estimate"].values()) == {0.0}


def test_tokens_that_a_late_read_brought_together_make_the_run_invalid() -> None:
    """Half of the answers: 20 of 120 ms of their TTFT, 10 of 110 ms of the mean."""
    run = stamped(*(read_at_once(3 if place % 2 else 1, unread_ms=40.0) for place in range(20)))
    summary = summarize(run, engine="e", model="m", workload=CLOSED)
    assert summary.facts["client_error_estimate"]["ttft_mean"] == pytest.approx(10 / 110, rel=1e-3)
    assert "the load process was late by 10.0 ms of the 110.0 ms of ttft_mean" in summary.invalid[0]


def test_a_client_that_used_up_its_core_is_the_bottleneck_whatever_its_lag() -> None:
    assert "used 99% of a core, so it could not read as fast" in estimated(busiest_share=0.99).invalid[0]


def test_nothing_is_concluded_from_a_handful_of_samples() -> None:
    few = estimated(loop_lag_mean_ns=50 * MS, loop_lag_p99_ns=90 * MS, busiest_share=0.99, loop_lag_samples=20)
    assert (few.invalid, few.doubtful) == ((), {})


def run_of(client: ClientHealth) -> LoadRun:
    records = [
        answered(
            dispatched_ms=100 * i,
            events_ms=tuple(100 * i + 50 + 20 * k for k in range(11)),
            tokens=(1,) * 11,
        )
        for i in range(4)
    ]
    return replace(load_run(*records), client=client)


def test_a_starved_client_makes_limits_on_its_latencies_invalid() -> None:
    summary = summarize(run_of(health(loop_lag_mean_ns=8 * MS)), engine="e", model="m", workload=CLOSED)
    verdict = judge(summary, "ttft_mean", limit("ttft_mean", maximum=1.0))
    assert verdict.outcome is Outcome.INVALID
    doubtful = summarize(run_of(health(loop_lag_p99_ns=40 * MS)), engine="e", model="m", workload=CLOSED)
    assert judge(doubtful, "ttft_mean", limit("ttft_mean", maximum=1.0)).outcome is Outcome.PASS
    assert judge(doubtful, "ttft_p99", limit("ttft_p99", maximum=1.0)).outcome is Outcome.INVALID


# ---------------------------------------------------------------------- engine, API server, client


def scraped(*, ttft_ms: float, gap_ms: float, requests: int = 4, tokens: int = 11) -> tuple[object, object]:
    before = replace(counters(generation_tokens=100), latencies={"ttft": (1.0, 10), "itl": (2.0, 90)})
    after = replace(
        counters(generation_tokens=100 + requests * tokens),
        latencies={
            "ttft": (1.0 + requests * ttft_ms / 1e3, 10 + requests),
            "itl": (2.0 + requests * (tokens - 1) * gap_ms / 1e3, 90 + requests * (tokens - 1)),
            "queue": (requests * 0.003, requests),
        },
    )
    return before, after


def test_an_engine_as_slow_as_the_client_saw_leaves_nothing_to_the_api_server() -> None:
    run = run_of(health(loop_lag_mean_ns=200_000))
    split = latency_split(run, run.records, *scraped(ttft_ms=48, gap_ms=19.8))
    assert split.engine_gap_s == pytest.approx(0.0198)
    assert split.client_gap_s == pytest.approx(0.020)
    assert split.engine_ttft_s == pytest.approx(0.048)
    assert split.queue_s == pytest.approx(0.003)
    assert split.prefill_s is None
    assert split.api_server_ttft_s == pytest.approx(0.050 - 0.048 - 0.0002)
    assert split.api_server_limited is None
    assert split.facts()["api_server_gap_s"] == pytest.approx(0.0002)


def test_an_api_server_that_holds_tokens_back_is_named_with_the_flag_that_helps() -> None:
    run = run_of(health())
    split = latency_split(run, run.records, *scraped(ttft_ms=20, gap_ms=11))
    assert split.api_server_limited == (
        "the API server, not the engine, took 9.0 of the 20.0 ms of a token and 30.0 of the 50.0 ms of TTFT: more of "
        'them may help (args={"api-server-count": …})'
    )
    before, after = scraped(ttft_ms=20, gap_ms=11)
    summary = summarize(run, engine="e", model="m", workload=CLOSED, before=before, after=after)
    assert split.api_server_limited in summary.warnings
    starved = summarize(
        run_of(health(loop_lag_mean_ns=9 * MS)), engine="e", model="m", workload=CLOSED, before=before, after=after
    )
    assert split.api_server_limited not in starved.warnings, "with a late client nobody knows"


def test_a_server_without_histograms_gives_no_split() -> None:
    run = run_of(health())
    split = latency_split(run, run.records, counters(), counters())
    assert (split.engine_ttft_s, split.engine_gap_s, split.api_server_limited) == (None, None, None)
    assert latency_split(run, (), None, None).client_ttft_s is None
