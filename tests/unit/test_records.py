"""What a record says about latency."""

from dataclasses import replace

import pytest
from streams import answered

from pytest_vllmperf.domain.records import latency_s

RECORD = answered(
    dispatched_ms=10, written_ms=11, intended_ms=4, events_ms=(31, 41, 61), tokens=(2, 1, 3), input_tokens=4
)


@pytest.mark.parametrize(
    ("metric", "open_loop", "expected_ms"),
    [
        ("ttft", False, 20),
        ("ttft", True, 27),
        ("service_ttft", True, 20),
        ("e2el", False, 50),
        ("e2el", True, 57),
        ("service_e2el", True, 50),
        ("tpot", True, 7.5),
    ],
)
def test_latencies_count_from_where_they_must(metric: str, open_loop: bool, expected_ms: float) -> None:
    assert latency_s(RECORD, metric, open_loop=open_loop) == pytest.approx(expected_ms / 1000)


def test_an_answer_without_a_token_has_no_latency() -> None:
    assert latency_s(replace(RECORD, event_ns=()), "ttft", open_loop=False) is None
