import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import small

from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError
from pytest_vllmperf.load.payload import encode_requests, word_range
from pytest_vllmperf.load.questions import prompts, questions

ENGINE = {"base_url": "http://127.0.0.1:8000", "model": "m", "api_key": "secret"}


def _encoded(workload: Workload, seed: int = 3, **engine: object) -> list[bytes]:
    asked = questions(workload, token_range=word_range(workload, (300, 900)), seed=seed)
    return encode_requests(workload, asked, **{**ENGINE, **engine})


def _parsed(request: bytes) -> tuple[list[str], dict[str, object]]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert f"Content-Length: {len(body)}" in lines
    return lines, json.loads(body)


@given(
    input_tokens=st.integers(2, 40),
    requests=st.integers(1, 30),
    seed=st.integers(0, 2**32),
    low=st.integers(0, 1_000),
    width=st.integers(50, 200_000),
)
def test_prompts_have_the_asked_length_and_range_and_none_repeats(
    input_tokens: int, requests: int, seed: int, low: int, width: int
) -> None:
    workload = small(input_tokens=input_tokens, requests=requests)
    drawn = list(prompts(workload, token_range=(low, low + width), seed=seed))
    assert len(set(drawn)) == requests
    assert {len(prompt) for prompt in drawn} == {input_tokens}
    assert all(low <= token < low + width for prompt in drawn for token in prompt)


def test_a_seed_repeats_its_prompts_and_another_shares_none() -> None:
    workload = small(requests=50)
    first, again, other = (set(prompts(workload, token_range=(300, 900), seed=s)) for s in (1, 1, 2))
    assert first == again
    assert not first & other


def test_a_range_too_small_for_different_prompts_is_refused_with_its_size() -> None:
    workload = small(input_tokens=1, requests=3)
    with pytest.raises(WorkloadError, match=r"token_range=\(5, 7\) does not hold 3 different prompts of 1 tokens"):
        list(prompts(workload, token_range=(5, 7), seed=0))


@pytest.mark.parametrize("token_range", [(5, 5), (6, 5), (-1, 5)])
def test_an_empty_token_range_is_refused(token_range: tuple[int, int]) -> None:
    with pytest.raises(WorkloadError, match=r"must be \(low, high\) with 0 <= low < high"):
        list(prompts(small(), token_range=token_range, seed=0))


def test_a_completions_request_asks_for_an_exact_stream_of_token_ids() -> None:
    lines, body = _parsed(_encoded(small())[0])
    assert lines[0] == "POST /v1/completions HTTP/1.1"
    assert {"Host: 127.0.0.1:8000", "Authorization: Bearer secret"} <= set(lines)
    assert len(body.pop("prompt")) == 8
    assert body == {
        "model": "m",
        "max_tokens": 12,
        "min_tokens": 12,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_chat_request_is_one_user_message_of_about_that_many_words() -> None:
    lines, body = _parsed(_encoded(small(api="chat"))[0])
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 8
    assert "prompt" not in body


def test_short_chat_prompts_differ_too() -> None:
    workload = small(api="chat", input_tokens=1, requests=60)
    sent = [_parsed(r)[1]["messages"][0]["content"] for r in _encoded(workload)]
    assert len(set(sent)) == 60


def test_a_base_url_with_a_path_keeps_it_and_its_credentials_are_not_sent_as_host() -> None:
    requests = _encoded(small(), base_url="http://u:p@host:1/proxy/", api_key=None)
    lines, _ = _parsed(requests[0])
    assert lines[0] == "POST /proxy/v1/completions HTTP/1.1"
    assert "Host: host:1" in lines
    assert not [line for line in lines if line.startswith("Authorization")]


def test_the_number_of_requests_is_the_workloads() -> None:
    assert len(_encoded(replace(small(), requests=17))) == 17


def test_sampling_and_template_parameters_travel_with_every_request() -> None:
    workload = small(
        api="chat",
        sampling={"temperature": 0.7, "top_p": 0.9, "reasoning_effort": "low"},
        chat_template_kwargs={"enable_thinking": True},
        reasoning_budget=64,
    )
    for request in _encoded(workload):
        _, body = _parsed(request)
        assert (body["temperature"], body["top_p"], body["reasoning_effort"]) == (0.7, 0.9, "low")
        assert body["chat_template_kwargs"] == {"enable_thinking": True}
        assert body["thinking_token_budget"] == 64
        assert body["ignore_eos"] is True


def test_an_answer_that_may_end_early_is_asked_without_a_minimum() -> None:
    _, body = _parsed(_encoded(small(ignore_eos=False))[0])
    assert body["max_tokens"] == 12
    assert not {"ignore_eos", "min_tokens", "chat_template_kwargs", "thinking_token_budget"} & set(body)
