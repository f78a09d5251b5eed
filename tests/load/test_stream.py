import json

import pytest

from pytest_vllmperf.domain.records import RequestOutcome, RequestRecord
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.stream import record_of

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str | None = None, *, finish: str | None = None, used: int | None = None, **more: object) -> bytes:
    body: dict[str, object] = {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}
    if used is not None:
        body["usage"] = {"prompt_tokens": 5, "completion_tokens": used}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(used: int, **more: object) -> bytes:
    counts = {"prompt_tokens": 5, "completion_tokens": used, **more}
    return b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read(*events: bytes, asked: int = 2, head: bytes = HEAD) -> RequestRecord:
    """The record of a whole answer, with one event to a read, stamped 100, 200, …"""
    reads = [(50, head), *((100 * i, chunk(data)) for i, data in enumerate(events, 1)), (9_999, END)]
    exchange = Exchange(index=3, payload=b"", intended_ns=1, dispatched_ns=2, written_ns=3, ended_ns=9_999, reads=reads)
    return record_of(exchange, output_tokens=asked)


def test_a_plain_stream_is_a_success_with_every_fact() -> None:
    record = read(event("a", used=1), event("b", used=2, finish="length"), usage(2), DONE)
    assert record == RequestRecord(
        index=3,
        outcome=RequestOutcome.SUCCESS,
        status=200,
        intended_ns=1,
        dispatched_ns=2,
        written_ns=3,
        first_byte_ns=100,
        event_ns=(100, 200),
        event_tokens=(1, 1),
        ended_ns=9_999,
        input_tokens=5,
        output_tokens=2,
        cached_tokens=None,
        finish_reason="length",
        detail=None,
        first_answer_ns=100,
    )


def test_role_finish_and_usage_events_carry_no_token() -> None:
    role = event(None, delta={"role": "assistant", "content": ""}, used=0)
    first = event(None, delta={"content": "a"}, used=1)
    last = event(None, delta={"content": "b"}, used=2)
    finish = event(None, delta={}, used=2, finish="length")
    record = read(role, first, last, finish, usage(2), DONE)
    assert record.succeeded
    assert record.event_ns == (200, 300)
    assert record.first_byte_ns == 100


@pytest.mark.parametrize(
    "delta",
    [{"content": "x"}, {"reasoning": "x"}, {"reasoning_content": "x"}, {"tool_calls": [{"index": 0}]}],
)
def test_text_reasoning_and_tool_calls_are_tokens(delta: dict[str, object]) -> None:
    assert read(event(delta=delta, finish="stop"), DONE).event_ns == (100,)


def test_a_token_without_text_is_seen_by_its_usage() -> None:
    record = read(event("", used=1), event("é", used=2, finish="length"), DONE)
    assert record.event_ns == (100, 200)
    assert record.event_tokens == (1, 1)


def test_tokens_of_an_event_are_what_the_running_usage_grew() -> None:
    assert read(event("abc", used=3), event("d", used=4, finish="length"), DONE, asked=4).event_tokens == (3, 1)


def test_event_tokens_are_unknown_unless_every_event_told() -> None:
    record = read(event("a"), event("b", used=2, finish="length"), DONE)
    assert record.succeeded
    assert record.event_tokens is None
    assert record.output_tokens == 2


def test_as_many_tokens_as_events_leave_one_for_each() -> None:
    record = read(event("a"), event("b", finish="length"), usage(2), DONE)
    assert record.event_tokens == (1, 1)
    assert read(event("a"), event("b", finish="length"), usage(3), DONE).event_tokens is None


def test_event_tokens_are_unknown_when_they_do_not_add_up() -> None:
    assert read(event("a", used=1, finish="length"), usage(2), DONE).event_tokens is None
    backwards = read(event("a", used=5), event("b", used=2, finish="length"), DONE)
    assert backwards.event_tokens is None


def test_missing_usage_is_unknown_and_not_zero() -> None:
    record = read(event("a"), event("b", finish="length"), DONE)
    assert record.succeeded
    assert (record.input_tokens, record.output_tokens, record.event_tokens) == (None, None, None)
    assert record.event_ns == (100, 200)


def test_cached_tokens_are_taken_from_the_prompt_details() -> None:
    told = usage(1, prompt_tokens_details={"cached_tokens": 4})
    assert read(event("a", finish="length"), told, DONE, asked=1).cached_tokens == 4
    assert read(event("a", finish="length"), usage(1, prompt_tokens_details=None), DONE, asked=1).cached_tokens is None


TOKENS = (event("a", used=1), event("b", used=2, finish="length"))


@pytest.mark.parametrize(
    ("events", "outcome", "detail"),
    [
        ((*TOKENS,), RequestOutcome.TRUNCATED, "without [DONE]"),
        ((event("a"), event("b"), DONE), RequestOutcome.TRUNCATED, "without finish_reason"),
        ((event("a"),), RequestOutcome.TRUNCATED, "without finish_reason and without [DONE]"),
        ((event("", finish="stop"), DONE), RequestOutcome.NO_TOKENS, "no token"),
        ((event("a", used=1, finish="stop"), DONE), RequestOutcome.WRONG_LENGTH, "1 tokens instead of 2"),
        ((event("a", finish="abort"), DONE), RequestOutcome.STREAM_ERROR, "finish_reason 'abort'"),
        ((*TOKENS, b"data: {nonsense\n\n", DONE), RequestOutcome.PROTOCOL_ERROR, "{nonsense"),
        ((*TOKENS, b"data: [1]\n\n", DONE), RequestOutcome.PROTOCOL_ERROR, "Expected `object`"),
        ((event("a", used=-1, finish="stop"), DONE), RequestOutcome.PROTOCOL_ERROR, ">= 0"),
        ((b'data: {"choices":[{"text":"\xff"}]}\n\n', DONE), RequestOutcome.PROTOCOL_ERROR, "not what the API sends"),
        ((b"data: " + b'{"a":' * 5_000 + b"\n\n", DONE), RequestOutcome.PROTOCOL_ERROR, "not what the API sends"),
        ((b"hello\n",), RequestOutcome.PROTOCOL_ERROR, "not a stream of events"),
        ((), RequestOutcome.TRUNCATED, "without"),
    ],
)
def test_everything_else_is_a_failure_that_says_why(
    events: tuple[bytes, ...], outcome: RequestOutcome, detail: str
) -> None:
    record = read(*events)
    assert record.outcome is outcome
    assert detail in (record.detail or "")


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "engine died", "code": 500}},
        {"error": "engine died"},
        {"object": "error", "message": "engine died", "code": 500},
    ],
)
def test_an_error_inside_the_stream_wins_over_everything_that_looks_right(error: dict[str, object]) -> None:
    record = read(*TOKENS, b"data: " + json.dumps(error).encode() + b"\n\n", usage(2), DONE)
    assert record.outcome is RequestOutcome.STREAM_ERROR
    assert record.detail == "error inside the stream: engine died"
    assert record.event_ns == (100, 200)


def test_a_null_error_is_none() -> None:
    assert read(event("a", used=1), event("b", used=2, finish="length"), b'data: {"error":null}\n\n', DONE).succeeded


def test_what_comes_after_done_is_ignored() -> None:
    assert read(*TOKENS, DONE, b'data: {"error":"late"}\n\n').succeeded


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"The model `x` does not exist.","code":404}}', "The model `x` does not exist."),
        (b'{"object":"error","message":"too long"}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"<html>\x00 proxy\n</html>", "<html> proxy </html>"),
        (b"", "no message"),
        (b'{"error":{}}', '{"error":{}}'),
    ],
)
def test_an_http_error_is_told_in_the_servers_words(body: bytes, said: str) -> None:
    head = HEAD.replace(b"200 OK", b"404 Not Found").replace(b"text/event-stream", b"application/json")
    record = read(*([body] if body else []), head=head)
    assert (record.outcome, record.status) == (RequestOutcome.HTTP_ERROR, 404)
    assert record.detail == f"HTTP 404: {said}"


def test_a_whole_json_answer_is_no_stream() -> None:
    record = read(b'{"choices":[{"text":"ab"}]}', head=HEAD.replace(b"text/event-stream", b"application/json"))
    assert record.outcome is RequestOutcome.PROTOCOL_ERROR
    assert "not a stream of events (application/json; charset=utf-8)" in (record.detail or "")


def test_a_detail_is_one_short_line() -> None:
    record = read(b"data: {\x1b[31m" + b"long\\n " * 500 + b"\n\n")
    assert record.detail is not None
    assert len(record.detail) <= 300
    assert record.detail.isprintable()


def test_a_time_out_keeps_the_tokens_that_came() -> None:
    exchange = Exchange(
        index=0,
        payload=b"",
        reads=[(1, HEAD), (2, chunk(event("a", used=1)))],
        outcome=RequestOutcome.TIMEOUT,
        detail="not finished",
    )
    record = record_of(exchange, output_tokens=2)
    assert (record.outcome, record.detail, record.event_ns) == (RequestOutcome.TIMEOUT, "not finished", (2,))


def test_a_request_never_answered_has_no_status() -> None:
    exchange = Exchange(index=0, payload=b"", outcome=RequestOutcome.CONNECTION_ERROR, detail="refused")
    record = record_of(exchange, output_tokens=2)
    assert (record.outcome, record.status, record.first_byte_ns) == (RequestOutcome.CONNECTION_ERROR, None, None)
