from typing import Any

import pytest
from streams import counters

from pytest_vllmperf.domain.records import ServerCounters
from pytest_vllmperf.domain.status import Status, load_status, show


def scrape(seconds: float, **known: Any) -> ServerCounters:
    plain = counters(**{k: v for k, v in known.items() if k == "generation_tokens"})
    from dataclasses import replace

    return replace(plain, at_ns=round(seconds * 1e9), **{k: v for k, v in known.items() if k != "generation_tokens"})


def test_a_load_is_told_from_what_the_server_counted_since_its_beginning() -> None:
    seen = (
        scrape(10, generation_tokens=500, requests_finished=7, latencies={"ttft": (1.0, 7)}),
        scrape(18, generation_tokens=4500, requests_finished=27, latencies={"ttft": (5.0, 27)}),
        scrape(19, generation_tokens=5500, requests_finished=32, latencies={"ttft": (6.0, 32)}),
        scrape(20, generation_tokens=6500, requests_finished=37, latencies={"ttft": (7.0, 37)}),
    )
    found = load_status("one: burst", seen, planned=100)
    assert (found.done, found.planned, found.elapsed_s) == (30, 100, 10)
    assert found.tokens_per_s == pytest.approx(1000)
    assert found.ttft_s == pytest.approx(0.2)
    assert found.remaining_s == pytest.approx(10 * 70 / 30)
    assert found.line == "one: burst: 30/100 requests, 1 000 tok/s, TTFT 200 ms, about 23 s left"


def test_a_server_without_counters_leaves_the_time() -> None:
    found = load_status("x", (scrape(0), scrape(42)), planned=5)
    assert (found.done, found.tokens_per_s, found.ttft_s, found.remaining_s) == (None, None, None, None)
    assert found.line == "x: 42 s"


def test_a_server_that_restarted_counts_for_nothing() -> None:
    found = load_status("x", (scrape(0, requests_finished=50), scrape(5, requests_finished=3)), planned=5)
    assert found.done is None


def test_two_requests_do_not_tell_what_is_left() -> None:
    assert Status(what="x", done=2, planned=100, elapsed_s=9.0).remaining_s is None
    assert Status(what="x", done=2, planned=2, elapsed_s=9.0).remaining_s == 0


def test_plain_functions_only_take_lines() -> None:
    said: list[str] = []
    show(said.append, Status(what="x", done=1, planned=2, elapsed_s=1.0))
    assert said == []
