"""Every row of the fault plan for streams (H01–H22): of a hundred answers seven are bad, and exactly those are told.

Rows that are not about one of a hundred answers are tested elsewhere; ``docs/reliability.md`` lists them all.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from reference import MODEL, ReferenceServer, reference_server
from serving import TOKENS, small

from pytest_vllmperf.domain.records import LoadRun, RequestOutcome
from pytest_vllmperf.domain.summary import summarize
from pytest_vllmperf.load.driver import run_load

REQUESTS, BAD = 100, 7
EVERY = 14
"""Of a hundred answers each fourteenth is bad: seven."""


@pytest.fixture(scope="module")
def server() -> Iterator[ReferenceServer]:
    with reference_server("--ttft-ms", "10", "--tpot-ms", "1", "--shape-every", str(EVERY)) as running:
        yield running


def drive(server: ReferenceServer, shape: str, **changes: object) -> LoadRun:
    server.control(f"shape/{shape}")
    workload = small(**{"requests": REQUESTS, "max_concurrency": 25, **changes})
    return run_load(workload, base_url=server.base_url, model=MODEL, api_key=None, token_range=TOKENS, seed=1)


def assert_that_only_complete_answers_count(run: LoadRun) -> None:
    """Every percentile of the summary is that of the complete answers."""
    summary = summarize(run, engine="e", model=MODEL, workload=small(requests=REQUESTS, max_concurrency=25))
    done = [record for record in run.records if record.succeeded]
    first = [(record.event_ns[0] - (record.written_ns or 0)) * 1e-9 for record in done]
    whole = [(record.event_ns[-1] - (record.written_ns or 0)) * 1e-9 for record in done]
    for name, samples in (("ttft", first), ("e2el", whole)):
        assert sorted(summary.metrics[name].samples) == pytest.approx(sorted(samples), rel=1e-9)
        for percent in (50, 90):
            truth = np.percentile(samples, percent)
            assert summary.metrics[f"{name}_p{percent}"].value == pytest.approx(truth, rel=1e-9)
    assert summary.metrics["error_rate"].value == pytest.approx(1 - len(done) / len(run.records))
    assert (summary.requests, summary.completed) == (len(run.records), len(done))
    expected = Counter(str(record.outcome) for record in run.records if not record.succeeded)
    assert summary.failures == expected


@pytest.mark.parametrize(
    ("row", "shape", "outcome", "said"),
    [
        ("H01", "reset", RequestOutcome.CONNECTION_ERROR, "closed the connection before any answer"),
        ("H03", "http-429", RequestOutcome.HTTP_ERROR, "HTTP 429: scripted failure 429"),
        ("H03", "http-503", RequestOutcome.HTTP_ERROR, "HTTP 503: scripted failure 503"),
        ("H04", "http-400", RequestOutcome.HTTP_ERROR, "HTTP 400: scripted failure 400"),
        ("H05", "http-500", RequestOutcome.HTTP_ERROR, "HTTP 500: scripted failure 500"),
        ("H06", "cut", RequestOutcome.CONNECTION_ERROR, "closed the connection in the middle of the answer"),
        ("H07", "no-done", RequestOutcome.TRUNCATED, "without [DONE]"),
        ("H08", "in-band-error", RequestOutcome.STREAM_ERROR, "EngineCore encountered an issue."),
        ("H09", "abort", RequestOutcome.STREAM_ERROR, "the engine gave up: finish_reason 'abort'"),
        ("H09", "no-finish", RequestOutcome.TRUNCATED, "without finish_reason"),
        ("H10", "garbage", RequestOutcome.PROTOCOL_ERROR, "is not what the API sends"),
        ("H15", "empty", RequestOutcome.NO_TOKENS, "carries no token"),
        ("H22", "html", RequestOutcome.PROTOCOL_ERROR, "not a stream of events (text/html)"),
        ("H22", "redirect", RequestOutcome.HTTP_ERROR, "HTTP 302"),
    ],
)
def test_seven_bad_answers_are_seven_failures_of_their_class(
    server: ReferenceServer, row: str, shape: str, outcome: RequestOutcome, said: str
) -> None:
    run = drive(server, shape)
    assert Counter(record.outcome for record in run.records) == {RequestOutcome.SUCCESS: 93, outcome: BAD}, row
    assert all(said in (record.detail or "") for record in run.records if not record.succeeded)
    assert_that_only_complete_answers_count(run)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ("H11", "coalesced"),
        ("H12", "split-utf8"),
        ("H13", "comments"),
        ("H13", "crlf"),
        ("H13", "multi-line"),
        ("H14", "role-first"),
        ("H19", "after-done"),
    ],
)
def test_seven_strange_answers_are_as_good_as_the_others(server: ReferenceServer, row: str, shape: str) -> None:
    run = drive(server, shape, api="chat")
    assert Counter(record.outcome for record in run.records) == {RequestOutcome.SUCCESS: REQUESTS}, row
    assert {(record.output_tokens, len(record.event_ns)) for record in run.records} == {(12, 12)}
    assert_that_only_complete_answers_count(run)


def test_where_usage_is_missing_latencies_count_and_tokens_are_unknown(server: ReferenceServer) -> None:
    """H16."""
    run = drive(server, "no-usage")
    assert Counter(record.output_tokens for record in run.records) == {12: 93, None: BAD}
    assert_that_only_complete_answers_count(run)
    summary = summarize(run, engine="e", model=MODEL, workload=small(requests=REQUESTS, max_concurrency=25))
    assert "the server sent no usage for 7 of 100 answers: tokens are unknown" in summary.invalid


def test_an_answer_that_stalls_is_a_timeout_and_a_slow_one_is_none(server: ReferenceServer) -> None:
    """H17; and H18: the others go on for as long as they need."""
    run = drive(server, "slow-stall", timeout_s=1.5, max_concurrency=50)
    assert Counter(record.outcome for record in run.records) == {
        RequestOutcome.SUCCESS: 93,
        RequestOutcome.TIMEOUT: BAD,
    }
    assert_that_only_complete_answers_count(run)


def test_a_line_of_seventeen_megabytes_is_a_protocol_error(server: ReferenceServer) -> None:
    """H20: one of fourteen here, as each is seventeen megabytes."""
    run = drive(server, "huge-line", requests=EVERY)
    assert Counter(record.outcome for record in run.records) == {
        RequestOutcome.SUCCESS: EVERY - 1,
        RequestOutcome.PROTOCOL_ERROR: 1,
    }
    detail = next(record.detail for record in run.records if not record.succeeded)
    assert "a line of the event stream is longer than 16777216 bytes" in (detail or "")
