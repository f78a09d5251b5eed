"""What the fake engine's answers look like: well-behaved streams of vLLM's API, and hostile shapes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

__all__ = ["SHAPES", "Script", "Step", "steps_of", "usage"]

CHAT_SHAPES = ("role-first", "role+first", "reasoning", "tool")
SHAPES = (
    *CHAT_SHAPES,
    *("plain", "four-tokens", "coalesced", "split-utf8", "crlf", "comments", "multi-line", "in-band-error", "cut"),
    *("no-done", "no-usage", "no-finish", "empty", "wrong-length", "http-500", "http-429", "garbage", "not-http"),
    *("html", "slow-stall", "content-length", "close-delimited", "connection-close"),
    *("abort", "after-done", "huge-line"),
)
_FOREVER_S = 3600.0
_HUGE_BYTES = 17 * 1024 * 1024


@dataclass(frozen=True)
class Script:
    """What one answer does: how fast, how long, in which shape."""

    chat: bool
    model: str
    prompt_tokens: int
    output_tokens: int
    texts: tuple[str, ...]
    finish_reason: str
    usage_at_end: bool
    usage_on_each: bool
    ttft_s: float
    itl_s: float
    tokens_per_event: int
    shape: str


@dataclass(frozen=True)
class Step:
    """One write to the socket, ``at_s`` after the request arrived, carrying ``tokens`` new tokens."""

    at_s: float
    data: bytes
    tokens: int = 0
    carries: bool = False
    breaks: bool = False


def _event(script: Script, delta: dict[str, object], *, finish: str | None = None, used: int | None = None) -> bytes:
    """One event in the API's JSON, before any shape is applied."""
    choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": finish}
    choice.update({"delta": delta} if script.chat else {"text": delta.get("content", ""), "stop_reason": None})
    body: dict[str, object] = {
        "id": "chatcmpl-fake" if script.chat else "cmpl-fake",
        "object": "chat.completion.chunk" if script.chat else "text_completion",
        "created": 1_700_000_000,
        "model": script.model,
        "choices": [choice],
    }
    if used is not None and script.usage_on_each:
        body["usage"] = usage(script, used)
    return _line(body, script.shape)


def usage(script: Script, used: int) -> dict[str, int]:
    total = script.prompt_tokens + used
    return {"prompt_tokens": script.prompt_tokens, "total_tokens": total, "completion_tokens": used}


def _line(body: dict[str, object] | str, shape: str) -> bytes:
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    if shape == "comments":
        return f": ping\n\nevent: message\nid: 7\nretry: 100\ndata:{text}\n\n".encode()
    if shape == "multi-line" and not isinstance(body, str):
        text = json.dumps(body, ensure_ascii=False, indent=1).replace("\n", "\ndata: ")
    end = "\r\n" if shape == "crlf" else "\n"
    return f"data: {text}{end}{end}".encode()


def _deltas(script: Script) -> Iterator[tuple[dict[str, object], int]]:
    """Deltas that carry tokens, with how many tokens each."""
    per_event = 4 if script.shape == "four-tokens" else script.tokens_per_event
    left = script.output_tokens
    place = 0
    while left > 0:
        count = min(per_event, left)
        text = "".join(script.texts[(place + i) % len(script.texts)] for i in range(count))
        half = place < script.output_tokens // 2
        delta: dict[str, object] = {"content": text}
        if script.shape == "reasoning" and half:
            delta = {"reasoning": text}
        elif script.shape == "tool":
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        yield delta, count
        left -= count
        place += count


def _stream_steps(script: Script) -> list[Step]:
    """The whole answer as timed writes, well behaved except for what lies in the order and shape of events."""
    steps: list[Step] = []
    if script.chat and script.shape != "role+first":
        at_s = 0.0 if script.shape == "role-first" else script.ttft_s
        steps.append(Step(at_s, _event(script, {"role": "assistant", "content": ""}, used=0)))
    elif script.shape == "role-first":
        steps.append(Step(0.0, _event(script, {"content": ""}, used=0)))
    used = 0
    at_s = script.ttft_s
    apart = script.shape in ("role+first", "empty")
    for delta, count in _deltas(script):
        role = {"role": "assistant"} if script.shape == "role+first" and not used else {}
        used += count
        finish = script.finish_reason if used == script.output_tokens and not apart else None
        steps.append(Step(at_s, _event(script, {**role, **delta}, finish=finish, used=used), count, carries=True))
        at_s += script.itl_s * count
    if apart:
        steps.append(Step(at_s, _event(script, {}, finish=script.finish_reason, used=used)))
    if script.usage_at_end:
        body = {"id": "fake", "object": "text_completion", "choices": [], "usage": usage(script, used)}
        steps.append(Step(at_s, _line(body, script.shape)))
    return [*steps, Step(at_s, _line("[DONE]", script.shape))]


def steps_of(script: Script) -> list[Step]:
    """The answer to one request, bent as its shape says."""
    shape = script.shape
    if shape in ("empty", "wrong-length"):
        script = replace(script, output_tokens=0 if shape == "empty" else max(1, script.output_tokens // 2))
    elif shape == "no-usage":
        script = replace(script, usage_at_end=False, usage_on_each=False)
    elif shape in ("no-finish", "abort"):
        script = replace(script, finish_reason="" if shape == "no-finish" else "abort")
    steps = _stream_steps(script)
    middle = len(steps) // 2
    at_s = steps[middle].at_s
    if shape == "no-done":
        return steps[:-1]
    if shape == "cut":
        return [*steps[:middle], Step(at_s, b"", breaks=True)]
    if shape == "slow-stall":
        return [*steps[:middle], Step(_FOREVER_S, b"")]
    if shape == "garbage":
        return [*steps[:middle], Step(at_s, b'data: {"choices": [{]}\n\n'), *steps[middle:]]
    if shape == "in-band-error":
        error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}
        return [*steps[:middle], Step(at_s, _line({"error": error}, shape)), steps[-1]]
    if shape == "huge-line":
        return [*steps[:middle], Step(at_s, b"data: " + b"x" * _HUGE_BYTES), *steps[middle:]]
    if shape == "after-done":
        return [*steps, *steps[-4:]]
    if shape == "coalesced":
        return list(_coalesced(steps, 4))
    if shape == "split-utf8":
        return list(_split_in_characters(steps))
    return steps


def _coalesced(steps: list[Step], size: int) -> Iterator[Step]:
    for i in range(0, len(steps), size):
        group = steps[i : i + size]
        tokens = sum(step.tokens for step in group)
        carries = any(step.carries for step in group)
        yield Step(group[-1].at_s, b"".join(step.data for step in group), tokens, carries=carries)


def _split_in_characters(steps: list[Step]) -> Iterator[Step]:
    """Every event in two writes, cut within a character of several bytes where there is one."""
    for step in steps:
        wide = next((i for i, byte in enumerate(step.data) if byte >= 0x80), len(step.data) // 2)
        yield Step(step.at_s, step.data[: wide + 1])
        yield Step(step.at_s + 0.002, step.data[wide + 1 :], step.tokens, carries=step.carries)


def count_tokens(prompt: object) -> int:
    """Tokens of a prompt: ids count as they are, text by its words."""
    if isinstance(prompt, str):
        return len(prompt.split())
    if not isinstance(prompt, list):
        return 0
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    return sum(count_tokens(part.get("content") if isinstance(part, dict) else part) for part in prompt)
