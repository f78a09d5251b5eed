"""Requests as bytes: prompts nobody has sent before, encoded whole before the clock starts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError

__all__ = ["encode_requests", "prompts"]

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_REDRAWS = 100
"""How often a prompt drawn before is drawn anew, before a tiny token range is blamed."""
_WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"),
    *("family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company"),
    *("system", "program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area"),
    *("money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue"),
    *("side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member"),
    *("law", "car", "city", "name", "team", "minute", "idea", "body", "back", "parent", "face", "level", "office"),
    *("door", "health", "person", "art", "war", "history", "party", "result", "change", "morning", "reason", "girl"),
)
"""Common words, one token each in most vocabularies."""


def prompts(workload: Workload, *, token_range: tuple[int, int], seed: int) -> Iterator[tuple[int, ...]]:
    """Draw one prompt for each request: ``input_tokens`` ids from ``[low, high)``, no two alike.

    Raises:
        WorkloadError: The range is empty, or too small for that many different prompts.
    """
    low, high = token_range
    if not 0 <= low < high:
        raise WorkloadError(f"token_range={token_range!r} must be (low, high) with 0 <= low < high")
    draw = random.Random(f"{seed}:prompts")  # noqa: S311 - prompts, not secrets
    seen: set[tuple[int, ...]] = set()
    for _ in range(workload.requests):
        for _attempt in range(_REDRAWS):
            prompt = tuple(draw.choices(range(low, high), k=workload.input_tokens))
            if prompt not in seen:
                break
        else:
            raise WorkloadError(
                f"workload {workload.name!r}: token_range={token_range!r} does not hold {workload.requests} different "
                f"prompts of {workload.input_tokens} tokens; ask for fewer requests or longer prompts"
            )
        seen.add(prompt)
        yield prompt


def encode_requests(
    workload: Workload, *, base_url: str, model: str, api_key: str | None, token_range: tuple[int, int], seed: int
) -> list[bytes]:
    """The complete HTTP/1.1 requests of ``workload``, in order.

    Raises:
        WorkloadError: As :func:`prompts`.
    """
    url = urlsplit(base_url)
    head = (
        f"POST {url.path.rstrip('/')}{_PATHS[workload.api]} HTTP/1.1\r\nHost: {url.netloc.rpartition('@')[2]}\r\n"
        "User-Agent: pytest-vllmperf\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
        + (f"Authorization: Bearer {api_key}\r\n" if api_key else "")
    ).encode("latin-1")
    common = {
        "model": model,
        "max_tokens": workload.output_tokens,
        "min_tokens": workload.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    encode = msgspec.json.Encoder().encode
    # The chat API takes no token ids: there the "tokens" are words.
    alphabet = token_range if workload.api == "completions" else (0, len(_WORDS))
    requests = []
    for prompt in prompts(workload, token_range=alphabet, seed=seed):
        body = encode({**common, **_question(prompt, workload)})
        requests.append(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
    return requests


def _question(prompt: tuple[int, ...], workload: Workload) -> dict[str, object]:
    if workload.api == "completions":
        return {"prompt": prompt}
    return {"messages": [{"role": "user", "content": " ".join(_WORDS[place] for place in prompt)}]}
