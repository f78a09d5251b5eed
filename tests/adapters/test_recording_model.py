import threading
from types import SimpleNamespace

import pytest
from chat_server import Reply, chat_server

from pytest_vllmperf.adapters.recording_model import Asking, RecordingModel, Target
from pytest_vllmperf.domain.records import RequestOutcome


def ask(url, questions, *, options=None, doc_ids=None, **changes):
    """Let the model answer ``questions`` as lm-eval would have it; returns the texts and the model."""
    given = {"max_concurrency": 4, "timeout_s": 10.0, "model": "m", "api_key": "secret"}
    target = Target(base_url=url, **{key: changes.pop(key, value) for key, value in given.items()})
    asking = Asking(api="chat", fields={"seed": 3, "max_tokens": 16, "temperature": 0})
    ids = doc_ids or range(len(questions))
    model = RecordingModel(target=target, asking=asking, number=lambda _, count: ids[count], **changes)
    requests = [
        SimpleNamespace(
            task_name="t", doc_id=i, args=(model.apply_chat_template([{"role": "user", "content": q}]), options or {})
        )
        for i, q in enumerate(questions)
    ]
    return model.generate_until(requests), model


def test_each_answer_is_recorded_with_everything_the_server_told():
    with chat_server(lambda q: Reply(content=f"re {q}", stop_reason="Q:", reasoning="hm")) as server:
        texts, model = ask(server.url, ["a", "b"], doc_ids=(17, 40))
    assert texts == ["re a", "re b"]
    first = model.answers[0]
    assert (first.doc_id, first.outcome, first.status, first.text) == (17, RequestOutcome.SUCCESS, 200, "re a")
    assert (first.finish_reason, first.stop_reason, first.reasoning_chars) == ("stop", "Q:", 2)
    assert (first.input_tokens, first.output_tokens, first.detail) == (7, 3, None)
    assert first.ended_ns > first.dispatched_ns
    assert model.answers[1].doc_id == 40


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_requests_go_to_the_chat_endpoint_greedily_and_with_the_key(suffix):
    options = {"until": ["a", "b", "c", "d", "e"], "max_gen_toks": 9, "temperature": 0.0}
    with chat_server(lambda _: Reply()) as server:
        ask(server.url + suffix, ["q"], options=options)
    assert server.paths == ["/v1/chat/completions"]
    assert server.authorizations == ["Bearer secret"]
    assert server.requests == [
        {
            "model": "m",
            "seed": 3,
            "max_tokens": 9,
            "temperature": 0,
            "messages": [{"role": "user", "content": "q"}],
            "stop": ["a", "b", "c", "d"],
        }
    ]


def test_without_stop_strings_none_are_sent_and_the_models_own_length_holds():
    with chat_server(lambda _: Reply()) as server:
        ask(server.url, ["q"], options={"until": []})
    assert "stop" not in server.requests[0]
    assert server.requests[0]["max_tokens"] == 16


def test_no_more_requests_are_in_flight_than_allowed():
    gate = threading.Event()
    with chat_server(lambda _: Reply(gate=gate)) as server:
        asking = threading.Thread(target=ask, args=(server.url, list("abcdefgh")), kwargs={"max_concurrency": 3})
        asking.start()
        deadline = threading.Event()
        while server.most_in_flight < 3 and asking.is_alive():
            deadline.wait(0.01)
        gate.set()
        asking.join(20)
    assert server.most_in_flight == 3
    assert len(server.requests) == 8


def test_a_failed_request_is_an_empty_answer_and_does_not_end_the_run():
    with chat_server(lambda q: Reply(status=500, raw="boom") if q == "b" else Reply()) as server:
        texts, model = ask(server.url, list("abc"))
    assert texts == ["The answer is 1.", "", "The answer is 1."]
    failed = model.answers[1]
    assert (failed.outcome, failed.status, failed.detail) == (RequestOutcome.HTTP_ERROR, 500, "HTTP 500: boom")


@pytest.mark.parametrize(
    "raw", ["no json", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {"content": 5}}]}']
)
def test_an_unreadable_answer_is_a_protocol_error(raw):
    with chat_server(lambda _: Reply(raw=raw)) as server:
        _, model = ask(server.url, ["a"])
    assert model.answers[0].outcome is RequestOutcome.PROTOCOL_ERROR
    assert model.answers[0].status == 200
    assert "unreadable answer" in model.answers[0].detail


def test_a_null_answer_is_a_success_without_text():
    with chat_server(lambda _: Reply(content=None, reasoning="thinking")) as server:
        texts, model = ask(server.url, ["a"])
    assert texts == [""]
    assert (model.answers[0].succeeded, model.answers[0].text, model.answers[0].reasoning_chars) == (True, None, 8)


def test_an_answer_that_never_comes_is_a_timeout():
    gate = threading.Event()
    with chat_server(lambda _: Reply(gate=gate)) as server:
        _, model = ask(server.url, ["a"], timeout_s=0.2)
        gate.set()
    assert model.answers[0].outcome is RequestOutcome.TIMEOUT
    assert model.answers[0].detail == "no answer within 0.2 s"


def test_when_the_engine_is_gone_the_rest_of_the_questions_is_not_sent():
    with chat_server(lambda _: Reply()) as server:
        url = server.url
    _, model = ask(url, ["a"] * 60)
    assert {a.outcome for a in model.answers} == {RequestOutcome.CONNECTION_ERROR}
    unsent = [a for a in model.answers if a.detail.startswith("not sent: 20 requests in a row had failed")]
    assert len(unsent) >= 60 - 20 - 4


def test_progress_counts_every_answer():
    told = []
    with chat_server(lambda _: Reply()) as server:
        ask(server.url, list("abc"), progress=lambda done, count: told.append((done, count)))
    assert told == [(1, 3), (2, 3), (3, 3)]
