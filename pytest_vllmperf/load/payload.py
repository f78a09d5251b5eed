"""Requests as bytes, encoded whole before the clock starts."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.load.questions import Part, Question

__all__ = ["CHAT_WORDS", "encode_requests", "word_range"]

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
CHAT_WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"),
    *("family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company"),
    *("system", "program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area"),
    *("money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue"),
    *("side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member"),
    *("law", "car", "city", "name", "team", "minute", "idea", "body", "back", "parent", "face", "level", "office"),
    *("door", "health", "person", "art", "war", "history", "party", "result", "change", "morning", "reason", "girl"),
)
"""Common words, one token each in most vocabularies."""


def encode_requests(
    workload: Workload,
    asked: Iterable[Question],
    *,
    base_url: str,
    model: str,
    api_key: str | None,
    cache_salt: str | None = None,
) -> list[bytes]:
    """The complete HTTP/1.1 requests that ask each of ``asked``, in order.

    Args:
        workload: Decides the API.
        asked: What each request asks.
        base_url: Of the engine.
        model: Name the engine serves the model under.
        api_key: Sent as a bearer token, where given.
        cache_salt: Keeps what others sent before out of these requests' prefix cache, where given; vLLM's own
            parameter, for prompts that cannot be made anew for each run.
    """
    url = urlsplit(base_url)
    head = (
        f"POST {url.path.rstrip('/')}{_PATHS[workload.api]} HTTP/1.1\r\nHost: {url.netloc.rpartition('@')[2]}\r\n"
        "User-Agent: pytest-vllmperf\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
        + (f"Authorization: Bearer {api_key}\r\n" if api_key else "")
    ).encode("latin-1")
    common: dict[str, object] = {
        "model": model,
        "temperature": 0,
        **workload.sampling,
        "stream": True,
        # Not continuous_usage_stats: usage on each event costs the API server a tenth of its throughput
        # (H200, 1024 streams, four API servers); a load generator must not slow down what it measures.
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if workload.ignore_eos else {}),
        **({"cache_salt": cache_salt} if cache_salt else {}),
        **({"chat_template_kwargs": dict(workload.chat_template_kwargs)} if workload.chat_template_kwargs else {}),
        **({"thinking_token_budget": workload.reasoning_budget} if workload.reasoning_budget else {}),
    }
    encode = msgspec.json.Encoder().encode
    put = _chat if workload.api == "chat" else _completion
    requests = []
    for question in asked:
        length = {"max_tokens": question.output_tokens}
        if workload.ignore_eos:  # a special token may stand for no text; min_tokens keeps those out
            length["min_tokens"] = question.output_tokens
        body = encode({**common, **length, **put(question)})
        requests.append(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
    return requests


def word_range(workload: Workload, token_range: tuple[int, int]) -> tuple[int, int]:
    """What ids are drawn from: the chat API takes no token ids, so there the "tokens" are words of a list."""
    return token_range if workload.api == "completions" else (0, len(CHAT_WORDS))


def _completion(question: Question) -> dict[str, object]:
    if len(question.turns) == 1:
        return {"prompt": question.turns[0]}
    return {"prompt": [token for turn in question.turns for token in turn]}


def _chat(question: Question) -> dict[str, object]:
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[i % 2], "content": _in_words(turn)} for i, turn in enumerate(question.turns)],
    }


def _in_words(part: Part) -> str:
    return part if isinstance(part, str) else " ".join(CHAT_WORDS[place] for place in part)
