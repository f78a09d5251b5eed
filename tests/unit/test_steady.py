"""The steady part of a run, and the latencies told by token and by answer."""

from dataclasses import replace

import pytest
from streams import MS, answered, load_run

from pytest_vllmperf.domain.latencies import distributions
from pytest_vllmperf.domain.records import RequestRecord
from pytest_vllmperf.domain.steady import steady_window
from pytest_vllmperf.domain.summary import summarize
from pytest_vllmperf.domain.workload import Workload


def at(sent_ms: float, *, ttft_ms: float = 50, tokens: int = 11, gap_ms: float = 10) -> RequestRecord:
    events = tuple(sent_ms + ttft_ms + gap_ms * k for k in range(tokens))
    return answered(dispatched_ms=sent_ms, intended_ms=sent_ms, events_ms=events, tokens=(1,) * tokens)


def closed(**changes: object) -> Workload:
    return Workload(
        **{"name": "c", "input_tokens": 4, "output_tokens": 11, "requests": 10, "max_concurrency": 2, **changes}
    )


def test_a_closed_loop_is_steady_from_its_opening_waves_first_tokens_to_its_last_dispatch() -> None:
    opening = [at(0, ttft_ms=300), at(0, ttft_ms=400)]
    rest = [at(500 + 150 * i) for i in range(8)]
    run = load_run(*opening, *rest)
    window = steady_window(run, closed(), run.records)
    assert window is not None
    assert (window.start_ns, window.end_ns) == (400 * MS, 1550 * MS)
    assert len(window.records) == 8
    inside = sum(400 * MS <= stamp <= 1550 * MS for r in run.records for stamp in r.event_ns)
    assert window.output_throughput == pytest.approx(inside / 1.15)
    summary = summarize(run, engine="e", model="m", workload=closed())
    assert summary.metrics["steady_ttft_mean"].value == pytest.approx(0.050)
    assert summary.metrics["ttft_mean"].value == pytest.approx((0.3 + 0.4 + 8 * 0.05) / 10)
    assert summary.facts["steady_s"] == 1.15
    assert summary.facts["judged_window"] == "full; limits on steady_* judge the steady window"


def test_a_single_wave_has_no_steady_part() -> None:
    run = load_run(at(0), at(0))
    assert steady_window(run, closed(requests=2), run.records) is None
    metrics = summarize(run, engine="e", model="m", workload=closed(requests=2)).metrics
    for name in ("steady_output_throughput", "steady_ttft_mean"):
        assert (metrics[name].value, metrics[name].missing) == (None, "too short to have a steady part")


def test_an_open_loop_is_steady_after_ramp_and_one_answer_until_the_last_arrival() -> None:
    run = load_run(*(at(100 * i) for i in range(30)))
    workload = closed(request_rate=10.0, max_concurrency=None, requests=30, ramp_s=0.5)
    window = steady_window(run, workload, run.records)
    assert window is not None
    assert (window.start_ns, window.end_ns) == (650 * MS, 2900 * MS)


def test_gaps_are_told_by_event_and_by_token() -> None:
    record = answered(events_ms=(10, 20, 50), tokens=(2, 1, 3))
    values = distributions([record], open_loop=False)
    assert values["itl"] == pytest.approx([0.010, 0.030])
    assert values["itl_per_token"] == pytest.approx([0.010, 0.010, 0.010, 0.010])
    unknown = replace(record, event_tokens=None)
    assert distributions([unknown], open_loop=False)["itl_per_token"] == []


def test_the_first_answer_token_comes_after_the_thinking() -> None:
    thinking = replace(answered(events_ms=(10, 20, 50), tokens=(1, 1, 1)), first_answer_ns=50 * MS)
    silent = answered(events_ms=(10, 20), tokens=(1, 1))
    values = distributions([thinking, silent], open_loop=False)
    assert values["answer_ttft"] == pytest.approx([0.050])
    assert values["ttft"] == pytest.approx([0.010, 0.010])
