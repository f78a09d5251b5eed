"""The load process against a live fake engine: real sockets, a real subprocess, the server's own stamps as truth."""

import math
import statistics
from collections.abc import Callable, Iterator

import pytest
from serving import TOKENS, FakeServer, running, small

from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.domain.records import RequestOutcome
from pytest_vllmperf.load.driver import LoadProgress
from pytest_vllmperf.load.questions import prompts
from pytest_vllmperf.load.schedule import arrival_offsets_ns

Serve = Callable[..., FakeServer]


def test_every_request_is_answered_and_the_servers_count_agrees(serve: Serve) -> None:
    server = serve()
    run = server.load(small(requests=10, max_concurrency=3), seed=5)
    assert [r.index for r in run.records] == list(range(10))
    assert {r.outcome for r in run.records} == {RequestOutcome.SUCCESS}
    assert {(r.input_tokens, r.output_tokens, r.finish_reason) for r in run.records} == {(8, 12, "length")}
    assert b'vllm:generation_tokens_total{engine="0",model_name="fake"} 120.0' in server.get("/metrics")
    sent = {tuple(body["prompt"]) for body in server.bodies()}
    assert sent == set(prompts(small(requests=10), token_range=TOKENS, seed=5))
    for r in run.records:
        assert run.started_ns <= r.intended_ns <= r.dispatched_ns <= (r.written_ns or 0) <= (r.first_byte_ns or 0)
        assert (r.first_byte_ns or 0) <= r.event_ns[0] <= r.event_ns[-1] <= r.ended_ns <= run.ended_ns


def test_the_number_of_requests_can_be_overridden_for_a_warm_up(serve: Serve) -> None:
    told: list[LoadProgress] = []
    run = serve().load(small(requests=50), requests=3, progress=told.append)
    assert len(run.records) == 3
    assert told[-1] == LoadProgress(finished=3, failed=0, planned=3)


def test_stamps_agree_with_the_servers_own(serve: Serve) -> None:
    server = serve("--fake-ttft-ms", "20", "--fake-itl-ms", "5")
    workload = small(requests=16, max_concurrency=4, output_tokens=20)
    run = server.load(workload)
    order = {prompt: i for i, prompt in enumerate(prompts(workload, token_range=TOKENS, seed=1))}
    delays: list[float] = []
    for body, stamp in zip(server.bodies(), server.stamps(), strict=True):
        record = run.records[order[tuple(body["prompt"])]]
        assert list(record.event_tokens or ()) == stamp["tokens"]
        assert len(record.event_ns) == len(stamp["sent_ns"])
        delays += [(seen - sent) * 1e-9 for seen, sent in zip(record.event_ns, stamp["sent_ns"], strict=True)]
        assert (record.written_ns or 0) - stamp["arrived_ns"] < 0.05e9
    assert min(delays) >= 0, "a token was seen before it was sent: the clocks differ"
    assert statistics.median(delays) < 0.05


@pytest.fixture(scope="module")
def shaped() -> Iterator[FakeServer]:
    """One server for all shapes."""
    with running() as start:
        yield start()


@pytest.mark.parametrize(
    ("shape", "outcome", "events"),
    [
        ("plain", RequestOutcome.SUCCESS, 12),
        ("role-first", RequestOutcome.SUCCESS, 12),
        ("role+first", RequestOutcome.SUCCESS, 12),
        ("four-tokens", RequestOutcome.SUCCESS, 3),
        ("coalesced", RequestOutcome.SUCCESS, 12),
        ("reasoning", RequestOutcome.SUCCESS, 12),
        ("tool", RequestOutcome.SUCCESS, 12),
        ("split-utf8", RequestOutcome.SUCCESS, 12),
        ("crlf", RequestOutcome.SUCCESS, 12),
        ("comments", RequestOutcome.SUCCESS, 12),
        ("multi-line", RequestOutcome.SUCCESS, 12),
        ("no-usage", RequestOutcome.SUCCESS, 12),
        ("content-length", RequestOutcome.SUCCESS, 12),
        ("close-delimited", RequestOutcome.SUCCESS, 12),
        ("connection-close", RequestOutcome.SUCCESS, 12),
        ("in-band-error", RequestOutcome.STREAM_ERROR, None),
        ("cut", RequestOutcome.CONNECTION_ERROR, None),
        ("no-done", RequestOutcome.TRUNCATED, 12),
        ("no-finish", RequestOutcome.TRUNCATED, 12),
        ("empty", RequestOutcome.NO_TOKENS, 0),
        ("wrong-length", RequestOutcome.WRONG_LENGTH, 6),
        ("http-500", RequestOutcome.HTTP_ERROR, 0),
        ("http-429", RequestOutcome.HTTP_ERROR, 0),
        ("garbage", RequestOutcome.PROTOCOL_ERROR, None),
        ("not-http", RequestOutcome.PROTOCOL_ERROR, 0),
        ("html", RequestOutcome.PROTOCOL_ERROR, 0),
    ],
)
def test_every_shape_is_classed_rightly_and_the_run_goes_on(
    shaped: FakeServer, shape: str, outcome: RequestOutcome, events: int | None
) -> None:
    assert shaped.get(f"/fake/shape/{shape}")
    run = shaped.load(small(requests=4, api="chat"))
    assert [r.outcome for r in run.records] == [outcome] * 4
    assert all((r.detail is None) == r.succeeded for r in run.records)
    if events is not None:
        assert {len(r.event_ns) for r in run.records} == {events}


def test_a_role_sent_at_once_is_not_the_first_token(serve: Serve) -> None:
    run = serve("--fake-shape", "role-first", "--fake-ttft-ms", "120").load(small(requests=2, api="chat"))
    for r in run.records:
        assert r.event_ns[0] - (r.written_ns or 0) >= 0.115e9
        assert (r.first_byte_ns or 0) < r.event_ns[0]


def test_a_stalled_answer_times_out_and_keeps_what_came(serve: Serve) -> None:
    run = serve("--fake-shape", "slow-stall").load(small(requests=3, timeout_s=0.4))
    assert [r.outcome for r in run.records] == [RequestOutcome.TIMEOUT] * 3
    assert {r.detail for r in run.records} == {"not finished within timeout_s=0.4"}
    for r in run.records:
        assert len(r.event_ns) > 0
        assert r.ended_ns - r.dispatched_ns >= 0.39e9


def test_a_refused_connection_fails_each_request_and_not_the_run(serve: Serve) -> None:
    """H01."""
    server = serve()
    server.process.terminate()
    server.process.wait(10)
    for changes in ({}, {"request_rate": 200.0, "max_concurrency": None}):
        run = server.load(small(requests=3, **changes))
        assert [r.outcome for r in run.records] == [RequestOutcome.CONNECTION_ERROR] * 3
        assert all(r.written_ns is None and "cannot connect" in (r.detail or "") for r in run.records)


def test_an_engine_that_dies_in_the_middle_fails_only_what_was_unanswered(serve: Serve) -> None:
    run = serve("--fake-exit-after-requests", "3").load(small(requests=6, max_concurrency=1))
    assert [r.succeeded for r in run.records] == [True] * 3 + [False] * 3
    assert {r.outcome for r in run.records[3:]} == {RequestOutcome.CONNECTION_ERROR}


def test_a_wrong_key_and_a_wrong_model_are_told_in_the_servers_words(serve: Serve) -> None:
    server = serve(env={"VLLM_API_KEY": "right"})
    assert {r.outcome for r in server.load(small(), api_key="right").records} == {RequestOutcome.SUCCESS}
    refused = server.load(small(), api_key="wrong").records[0]
    assert (refused.status, refused.detail) == (401, "HTTP 401: Unauthorized")
    other = serve("--served-model-name", "other").load(small()).records[0]
    assert (other.status, other.detail) == (404, "HTTP 404: The model `fake` does not exist.")


# ---------------------------------------------------------------------- loops


def in_flight(spans: list[tuple[int, int]]) -> int:
    """The most spans that overlap; one that begins where another ends does not."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def test_a_closed_loop_keeps_its_concurrency_and_its_connections(serve: Serve) -> None:
    server = serve()
    run = server.load(small(requests=12, max_concurrency=3))
    assert in_flight([(r.dispatched_ns, r.ended_ns) for r in run.records]) == 3
    assert all(r.intended_ns == r.dispatched_ns for r in run.records)
    assert len({stamp["connection"] for stamp in server.stamps()}) == 3


@pytest.mark.parametrize("shape", ["connection-close", "close-delimited", "wrong-length"])
def test_a_connection_is_reused_only_when_the_server_keeps_it(serve: Serve, shape: str) -> None:
    server = serve("--fake-shape", shape)
    server.load(small(requests=5, max_concurrency=1))
    used = [stamp["connection"] for stamp in server.stamps()]
    assert len(set(used)) == (1 if shape == "wrong-length" else 5)


def test_an_idle_connection_that_the_server_closed_is_not_used_again(serve: Serve) -> None:
    """H21."""
    server = serve("--fake-keep-alive-s", "0.05")
    run = server.load(small(requests=4, request_rate=4.0, burstiness=math.inf, max_concurrency=None))
    assert {r.outcome for r in run.records} == {RequestOutcome.SUCCESS}
    assert len({stamp["connection"] for stamp in server.stamps()}) == 4


def test_every_request_has_a_connection_of_its_own_where_they_are_not_kept(serve: Serve) -> None:
    """As llama.cpp's server needs it: it closes each one after an answer, and says that it does not."""
    server = serve()
    run = server.load(small(requests=6, max_concurrency=2), keep_alive=False)
    assert {r.outcome for r in run.records} == {RequestOutcome.SUCCESS}
    assert len({stamp["connection"] for stamp in server.stamps()}) == 6


@pytest.mark.parametrize(("idle_s", "kept"), [("5", True), ("0.02", False)])
def test_whether_a_server_keeps_connections_is_found_out(serve: Serve, idle_s: str, kept: bool) -> None:
    server = serve("--fake-keep-alive-s", idle_s)
    with ControlClient(server.base_url) as control:
        assert control.keeps_connections("fake") is kept


def test_an_open_loop_sends_on_schedule_however_slow_the_server(serve: Serve) -> None:
    workload = small(requests=20, request_rate=100.0, max_concurrency=None)
    run = serve("--fake-ttft-ms", "400").load(workload, seed=3)
    offsets = arrival_offsets_ns(workload, count=20, seed=3)
    assert [r.intended_ns - run.started_ns for r in run.records] == list(offsets or ())
    assert all(r.dispatched_ns >= r.intended_ns for r in run.records)
    assert {r.outcome for r in run.records} == {RequestOutcome.SUCCESS}
    assert in_flight([(r.dispatched_ns, r.ended_ns) for r in run.records]) > 10


def test_a_cap_delays_sending_but_neither_the_intended_times_nor_the_clients_health(serve: Serve) -> None:
    workload = small(requests=8, request_rate=200.0, burstiness=math.inf, max_concurrency=2)
    run = serve("--fake-ttft-ms", "150").load(workload)
    assert [r.intended_ns - run.started_ns for r in run.records] == [i * 5_000_000 for i in range(8)]
    assert in_flight([(r.dispatched_ns, r.ended_ns) for r in run.records]) == 2
    waited = max(r.dispatched_ns - r.intended_ns for r in run.records)
    assert waited > 0.3e9
    assert run.client.dispatch_lag_p99_ns < waited / 2, "waiting for room is not the client's delay"


def test_the_client_tells_how_it_fared(serve: Serve) -> None:
    client = serve().load(small()).client
    assert client.cpu_ns > 0
    assert client.wall_ns > 0
    assert client.run_queue_wait_ns is None or client.run_queue_wait_ns >= 0
    assert client.loop in ("uvloop", "asyncio")
