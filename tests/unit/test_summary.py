import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import CLOSED, MS, OPEN, answered, counters, failed, load_run

from pytest_vllmperf.domain.metrics import METRICS, STATISTICS
from pytest_vllmperf.domain.prompts import PromptLines, SharedPrefix
from pytest_vllmperf.domain.records import (
    LoadRun,
    MemorySample,
    RequestOutcome,
    RequestRecord,
    ServerCounters,
    time_per_output_token_s,
)
from pytest_vllmperf.domain.summary import Summary, growth, metric_values, summarize
from pytest_vllmperf.domain.workload import ServiceLevel, Workload

FIRST = answered(
    dispatched_ms=10, written_ms=11, intended_ms=4, events_ms=(31, 41, 61), tokens=(2, 1, 3), input_tokens=4
)
SECOND = answered(dispatched_ms=20, written_ms=21, intended_ms=20, events_ms=(71, 111), tokens=(1, 4), input_tokens=6)


def summary_of(run: LoadRun, workload: Workload = CLOSED, **given: object) -> Summary:
    return summarize(run, engine="baseline", model="tinymath", workload=workload, **given)  # type: ignore[arg-type]


def samples_ms(summary: Summary, name: str) -> list[float]:
    return [pytest.approx(s * 1e3) for s in summary.metrics[name].samples]


def test_latencies_of_a_closed_loop_start_when_the_request_was_written() -> None:
    summary = summary_of(load_run(FIRST, SECOND))
    assert samples_ms(summary, "ttft") == [20, 50]
    assert samples_ms(summary, "service_ttft") == [20, 50]
    assert samples_ms(summary, "ttfb") == [19.5, 49.5]
    assert samples_ms(summary, "e2el") == [50, 90]
    assert samples_ms(summary, "itl") == [10, 20, 40]


def test_latencies_of_an_open_loop_start_when_the_schedule_wanted_it_sent() -> None:
    summary = summary_of(load_run(FIRST, SECOND), OPEN)
    assert samples_ms(summary, "ttft") == [27, 51]
    assert samples_ms(summary, "e2el") == [57, 91]
    assert samples_ms(summary, "service_ttft") == [20, 50]
    assert samples_ms(summary, "service_e2el") == [50, 90]


def test_tpot_leaves_the_tokens_of_the_first_event_out() -> None:
    summary = summary_of(load_run(FIRST, SECOND))
    assert samples_ms(summary, "tpot") == [30 / 4, 40 / 4]


def test_throughput_is_tokens_over_first_dispatch_to_last_token() -> None:
    metrics = summary_of(load_run(FIRST, SECOND)).metrics
    window_s = 0.101  # 10 ms to 111 ms
    assert metrics["output_throughput"].value == pytest.approx(11 / window_s)
    assert metrics["total_throughput"].value == pytest.approx(21 / window_s)
    assert metrics["request_throughput"].value == pytest.approx(2 / window_s)
    assert metrics["per_request_throughput"].samples == (pytest.approx(6 / 0.05), pytest.approx(5 / 0.09))


def test_statistics_of_a_distribution_come_with_its_sample_count() -> None:
    metrics = summary_of(load_run(FIRST, SECOND)).metrics
    assert metrics["ttft_mean"].value == metrics["ttft_p50"].value == pytest.approx(0.035)
    assert metrics["ttft_p90"].value == pytest.approx(0.047)
    assert {metrics[f"ttft_{s}"].n for s in STATISTICS} == {2}
    assert metrics["ttft"].value is None
    assert metrics["itl_mean"].n == 3


TIMES = st.lists(st.integers(1, 10**12), min_size=1, max_size=12).map(
    lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))]
)


@st.composite
def streams(draw: st.DrawFn) -> RequestRecord:
    """A complete answer with events at any times, carrying any tokens, integer ns throughout."""
    dispatched, wait = draw(st.integers(0, 10**12)), draw(st.integers(0, 10**9))
    events = tuple(dispatched + wait + t for t in draw(TIMES))
    tokens = tuple(draw(st.lists(st.integers(1, 9), min_size=len(events), max_size=len(events))))
    base = answered(events_ms=(1.0,), tokens=(1,))
    return replace(
        base,
        intended_ns=dispatched - draw(st.integers(0, 10**9)),
        dispatched_ns=dispatched,
        written_ns=dispatched + wait,
        first_byte_ns=events[0],
        event_ns=events,
        event_tokens=tokens,
        output_tokens=sum(tokens),
        ended_ns=events[-1],
    )


@given(st.lists(streams(), min_size=1, max_size=5))
def test_formulas_hold_for_any_streams_in_exact_arithmetic(records: list[RequestRecord]) -> None:
    metrics = summary_of(load_run(*records), OPEN).metrics
    ns = Fraction(1, 10**9)

    def exactly(name: str, expected: list[Fraction]) -> None:
        assert list(metrics[name].samples) == pytest.approx([float(e) for e in expected], rel=1e-9, abs=1e-12)

    exactly("ttft", [(r.event_ns[0] - r.intended_ns) * ns for r in records])
    exactly("service_ttft", [(r.event_ns[0] - (r.written_ns or 0)) * ns for r in records])
    exactly("e2el", [(r.event_ns[-1] - r.intended_ns) * ns for r in records])
    exactly("itl", [(r.event_ns[i] - r.event_ns[i - 1]) * ns for r in records for i in range(1, len(r.event_ns))])
    exactly(
        "tpot",
        [
            (r.event_ns[-1] - r.event_ns[0]) * ns / sum((r.event_tokens or ())[1:])
            for r in records
            if len(r.event_ns) > 1
        ],
    )
    window = (max(t for r in records for t in r.event_ns) - min(r.dispatched_ns for r in records)) * ns
    tokens = sum(sum(r.event_tokens or ()) for r in records)
    assert metrics["output_throughput"].value == pytest.approx(float(tokens / window), rel=1e-9)
    assert metrics["request_throughput"].value == pytest.approx(float(len(records) / window), rel=1e-9)


@given(st.lists(streams(), min_size=1, max_size=4), st.integers(-(10**9), 10**12))
def test_moving_the_clock_changes_no_metric(records: list[RequestRecord], shift: int) -> None:
    def moved(r: RequestRecord) -> RequestRecord:
        return replace(
            r,
            intended_ns=r.intended_ns + shift,
            dispatched_ns=r.dispatched_ns + shift,
            written_ns=(r.written_ns or 0) + shift,
            first_byte_ns=(r.first_byte_ns or 0) + shift,
            event_ns=tuple(t + shift for t in r.event_ns),
            ended_ns=r.ended_ns + shift,
        )

    before = summary_of(load_run(*records), OPEN)
    assert summary_of(load_run(*map(moved, records)), OPEN).metrics == before.metrics


def test_every_metric_of_a_load_run_is_in_the_catalogue_under_its_own_name() -> None:
    metrics = summary_of(load_run(FIRST, SECOND)).metrics
    assert {name for name, value in metrics.items() if value.name != name} == set()
    assert set(metrics) <= set(METRICS)
    elsewhere = {"time_to_ready", "first_request_ttft", "accuracy", "accuracy_change", "capacity_rps"}
    elsewhere |= {"kl_mean", "top1_agreement", "perplexity", "time_to_sleep", "time_to_wake", "device_memory_asleep"}
    elsewhere |= {
        "sm_clock_ratio",
        "host_memory_steady",
        "device_memory_steady",
        "power_mean",
        "energy_per_output_token",
    }
    assert set(METRICS) - set(metrics) == elsewhere


def test_every_value_that_is_missing_says_why() -> None:
    for run in (load_run(), load_run(failed()), load_run(FIRST), load_run(FIRST, failed())):
        for value in summary_of(run).metrics.values():
            if value.value is None and not value.samples:
                assert value.missing, value
            if value.value is not None:
                assert math.isfinite(value.value)
                assert value.missing is None


def test_tpot_counts_one_token_in_the_first_event_where_the_server_does_not_say() -> None:
    silent = replace(FIRST, event_tokens=None)
    assert time_per_output_token_s(silent) == pytest.approx(0.030 / 5)


@pytest.mark.parametrize(
    "record",
    [
        replace(FIRST, output_tokens=None),
        answered(events_ms=(5,), tokens=(6,)),
        answered(events_ms=(5, 6), tokens=(6, 0)),
    ],
)
def test_tpot_is_missing_without_usage_or_when_all_came_at_once(record: RequestRecord) -> None:
    assert time_per_output_token_s(record) is None


def test_an_answer_in_one_event_is_told_as_the_reason_for_a_missing_tpot() -> None:
    metrics = summary_of(load_run(answered(events_ms=(5,), tokens=(6,)))).metrics
    assert metrics["tpot_mean"].missing == metrics["itl_mean"].missing == "every answer arrived in one event"


def test_failed_requests_enter_the_error_rate_and_no_latency() -> None:
    refused = failed(RequestOutcome.CONNECTION_ERROR, detail="refused")
    summary = summary_of(load_run(FIRST, refused, failed(), failed()))
    assert summary.metrics["ttft"].n == 1
    assert summary.metrics["error_rate"].value == 0.75
    assert (summary.requests, summary.completed) == (4, 1)
    assert summary.failures == {"connection_error": 1, "timeout": 2}
    assert summary.invalid == ()
    assert summary.warnings == ("failed requests: 2 timeout, 1 connection_error",)


def test_a_run_without_one_complete_answer_is_invalid_and_shows_the_cause() -> None:
    summary = summary_of(load_run(failed(), failed(RequestOutcome.HTTP_ERROR, detail="HTTP 404: no such model")))
    assert summary.invalid == ("0 of 2 requests completed (1 timeout, 1 http_error): HTTP 404: no such model",)
    assert summary.metrics["ttft_mean"].value is None
    assert summary.metrics["output_throughput"].missing == "no completed request"
    assert summary.metrics["error_rate"].value == 1.0


def test_a_run_without_any_request_is_invalid_and_has_no_error_rate() -> None:
    summary = summary_of(load_run())
    assert summary.invalid == ("no request was sent",)
    assert summary.metrics["error_rate"].value is None


def test_without_usage_token_metrics_are_missing_and_the_run_is_invalid() -> None:
    summary = summary_of(load_run(FIRST, replace(SECOND, output_tokens=None, event_tokens=None)))
    assert summary.invalid == ("the server sent no usage for 1 of 2 answers: tokens are unknown",)
    assert summary.metrics["output_throughput"].missing == "the server sent no usage"
    assert summary.metrics["peak_output_throughput"].value is None
    assert summary.metrics["request_throughput"].value is not None


def test_without_prompt_usage_only_the_total_is_missing() -> None:
    metrics = summary_of(load_run(replace(FIRST, input_tokens=None), SECOND)).metrics
    assert metrics["total_throughput"].value is None
    assert metrics["output_throughput"].value is not None


def test_the_peak_needs_a_second_of_events() -> None:
    assert summary_of(load_run(FIRST)).metrics["peak_output_throughput"].missing == "shorter than one 1 s window"
    long = answered(events_ms=tuple(range(0, 2500, 100)), tokens=(1,) * 25)
    assert summary_of(load_run(long)).metrics["peak_output_throughput"].value == 10.0


def test_tokens_of_unknown_place_count_evenly_spread_in_the_peak() -> None:
    long = answered(events_ms=tuple(range(0, 2500, 100)), tokens=(1,) * 25)
    coalesced = replace(long, event_tokens=None, output_tokens=50)
    assert summary_of(load_run(coalesced)).metrics["peak_output_throughput"].value == 20.0


@pytest.mark.parametrize(
    ("level", "met"),
    [
        (ServiceLevel(), 2),
        (ServiceLevel(ttft_s=0.020), 1),
        (ServiceLevel(ttft_s=0.0199), 0),
        (ServiceLevel(tpot_s=0.010), 2),
        (ServiceLevel(tpot_s=0.008), 1),
        (ServiceLevel(e2el_s=0.060, tpot_s=0.008), 1),
        (ServiceLevel(ttft_s=1.0, e2el_s=0.049), 0),
    ],
)
def test_goodput_counts_requests_that_meet_every_level(level: ServiceLevel, met: int) -> None:
    workload = replace(CLOSED, service_level=level)
    goodput = summary_of(load_run(FIRST, SECOND), workload).metrics["goodput"]
    assert goodput.value == pytest.approx(met / 0.101)


def test_a_request_whose_tpot_is_unknown_does_not_meet_a_tpot_level() -> None:
    workload = replace(CLOSED, service_level=ServiceLevel(tpot_s=10.0))
    assert summary_of(load_run(answered(events_ms=(5,), tokens=(6,))), workload).metrics["goodput"].value == 0.0


def test_goodput_without_a_level_is_missing() -> None:
    assert summary_of(load_run(FIRST)).metrics["goodput"].missing == "the workload states no service level"


def test_memory_and_cache_peaks_are_the_largest_seen() -> None:
    memory = [
        MemorySample(at_ns=0, host_bytes=5, device_bytes=None),
        MemorySample(at_ns=1, host_bytes=9, device_bytes=None),
        MemorySample(at_ns=2, host_bytes=None, device_bytes=None),
    ]
    metrics = summary_of(
        load_run(FIRST),
        memory=memory,
        before=counters(kv_cache_usage=0.1, preemptions=3),
        during=[counters(kv_cache_usage=0.7), counters()],
        after=counters(kv_cache_usage=0.0, preemptions=5),
    ).metrics
    assert metrics["host_memory_peak"].value == 9.0
    assert (metrics["device_memory_peak"].value, metrics["device_memory_peak"].missing) == (None, "no GPU")
    assert metrics["kv_cache_usage_peak"].value == 0.7
    assert metrics["preemptions"].value == 2.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, counters(preemptions=1)),
        (counters(), counters(preemptions=1)),
        (counters(preemptions=5), counters(preemptions=1)),
    ],
)
def test_a_counter_that_is_absent_or_shrank_has_no_growth(before: ServerCounters | None, after: ServerCounters) -> None:
    assert growth(before, after, "preemptions") is None


def test_tokens_the_server_counted_and_no_answer_holds_make_the_run_invalid() -> None:
    def invalid(generated: int) -> tuple[str, ...]:
        before, after = counters(generation_tokens=100), counters(generation_tokens=100 + generated)
        return summary_of(load_run(FIRST, SECOND), before=before, after=after).invalid

    assert invalid(11) == ()
    (reason,) = invalid(12)
    assert reason.startswith("the answers hold 11 tokens, but the server counted 12: another client is using this")


CACHE = {"prefix_cache_hits": 10, "prefix_cache_queries": 100}


def scrapes(**growing: int) -> dict[str, ServerCounters]:
    return {
        "before": counters(**CACHE),
        "after": counters(**{name: count + growing.get(name, 0) for name, count in CACHE.items()}, preemptions=0),
    }


def test_the_hit_rate_is_what_was_found_of_what_was_looked_up_in_this_run() -> None:
    shared = replace(CLOSED, prompts=SharedPrefix(tokens=3, share=1.0))
    summary = summary_of(load_run(FIRST, SECOND), shared, **scrapes(prefix_cache_hits=6, prefix_cache_queries=8))
    assert summary.metrics["prefix_cache_hit_rate"].value == 0.75
    assert summary.invalid == ()
    assert summary.facts["planned_prefix_cache_hits"] == 6
    assert summary.facts["planned_prefix_cache_hit_rate"] == 0.75


def test_hits_no_plan_explains_are_invalid_and_on_a_shared_endpoint_only_shown() -> None:
    more = scrapes(prefix_cache_hits=4, prefix_cache_queries=8)
    (reason,) = summary_of(load_run(FIRST, SECOND), **more).invalid
    assert reason.startswith("the prefix cache served 4 prompt tokens and the plan explains 0: another client is using")
    shared = summary_of(load_run(FIRST, SECOND), **more, shared_endpoint=True)
    assert (shared.invalid, shared.metrics["prefix_cache_hit_rate"].value) == ((), 0.5)


def test_hits_of_a_chat_template_of_preempted_requests_and_of_files_are_no_accident() -> None:
    more = scrapes(prefix_cache_hits=400, prefix_cache_queries=800)
    assert summary_of(load_run(FIRST, SECOND), replace(CLOSED, api="chat"), **more).invalid == ()
    lines = replace(CLOSED, prompts=PromptLines(path="own.jsonl"), input_tokens=0)
    assert summary_of(load_run(FIRST, SECOND), lines, **more).invalid == ()
    preempted = {"before": replace(more["before"], preemptions=0), "after": replace(more["after"], preemptions=1)}
    assert summary_of(load_run(FIRST, SECOND), **preempted).invalid == ()


def test_a_cache_that_nobody_asked_or_that_is_not_published_has_no_hit_rate() -> None:
    off = summary_of(load_run(FIRST), **scrapes()).metrics["prefix_cache_hit_rate"]
    assert (off.value, off.missing) == (None, "prefix caching is off: nothing was looked up")
    silent = summary_of(load_run(FIRST), before=counters(), after=counters()).metrics["prefix_cache_hit_rate"]
    assert (silent.value, silent.missing) == (None, "the server does not publish it")


def test_a_starved_client_and_cached_prompts_are_doubts() -> None:
    run = load_run(replace(FIRST, cached_tokens=3), run_queue_wait_ns=250 * MS)
    assert summary_of(run).warnings == (
        "the load process waited for a core 25% of the time: latencies include its own delay",
        "3 prompt tokens came from the prefix cache",
    )
    assert summary_of(load_run(FIRST, run_queue_wait_ns=None)).warnings == ()


def test_the_facts_add_up() -> None:
    facts = summary_of(load_run(FIRST, SECOND)).facts
    assert (facts["input_tokens"], facts["output_tokens"], facts["events"]) == (10, 11, 5)
    assert facts["client_cpu_share"] == 0.1


def test_not_finite_values_become_missing_ones() -> None:
    values = metric_values(
        distributions={"ttft": [1.0, math.nan], "itl": []},
        scalars={"accuracy": math.nan, "preemptions": 0},
        missing={"itl": "one event"},
    )
    assert (values["ttft_mean"].value, values["ttft_mean"].missing) == (None, "a sample is not finite")
    assert (values["itl_p99"].value, values["itl_p99"].missing) == (None, "one event")
    assert (values["accuracy"].value, values["accuracy"].n, values["accuracy"].missing) == (None, 0, "not measured")
    assert (values["preemptions"].value, values["preemptions"].n) == (0, 1)
