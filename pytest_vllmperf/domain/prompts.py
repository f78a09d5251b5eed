"""Where a workload's prompts come from, and how much of them the plan lets a prefix cache serve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pytest_vllmperf.errors import WorkloadError

__all__ = [
    "PROMPT_SOURCES",
    "Conversations",
    "FillContext",
    "PromptLines",
    "PromptSource",
    "RandomPrompts",
    "ShareGPT",
    "SharedPrefix",
    "TraceReplay",
]


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


def _require(owner: PromptSource, attribute: str, holds: bool, allowed: str) -> None:
    if not holds:
        value = getattr(owner, attribute)
        raise WorkloadError(f"{type(owner).__name__}: {attribute}={value!r} must be {allowed}")


class PromptSource:
    """Base of all sources. ``kind`` names a source where it travels between processes."""

    __slots__ = ()
    kind: str
    sized = True
    """Whether ``Workload.input_tokens`` decides the length of the prompts."""
    from_file = False
    """Whether the prompts stand in a file, ``path``."""

    def reusable_tokens(self, *, requests: int, input_tokens: int, output_tokens: int, block: int) -> int | None:
        """Prompt tokens of ``requests`` measured requests that a prefix cache can serve; None when nobody can say.

        A cache holds whole blocks of ``block`` tokens. The warm-up has put every shared prefix into it.
        """
        return 0

    def describe(self, input_tokens: int) -> str:
        """The prompts' length and kind in a few words."""
        return str(input_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPrompts(PromptSource):
    """Random token ids of exactly ``input_tokens``, no two prompts alike: nothing to find in a prefix cache."""

    kind: Literal["random"] = field(default="random", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix(PromptSource):
    """Prompts of ``input_tokens``, of which a share opens with tokens that others open with too.

    The warm-up sends every shared prefix once, so that each sharing request can find it. The hit rate
    planned is ``share × tokens / input_tokens``, with ``tokens`` rounded down to whole cache blocks.

    Args:
        tokens: Length of the shared prefix; less than the workload's ``input_tokens``.
        share: Share of the requests that open with one, 1 for all; rounded to whole requests.
        groups: How many different prefixes there are, used in turn.
    """

    tokens: int
    share: float = 1.0
    groups: int = 1
    kind: Literal["shared-prefix"] = field(default="shared-prefix", init=False)

    def __post_init__(self) -> None:
        _require(self, "tokens", _whole(self.tokens, 1), "a whole number, 1 or more")
        _require(self, "share", _share(self.share), "above 0 and at most 1")
        _require(self, "groups", _whole(self.groups, 1), "a whole number, 1 or more")

    def sharing(self, requests: int) -> int:
        """How many of ``requests`` open with a shared prefix."""
        return round(self.share * requests)

    def reusable_tokens(self, *, requests: int, input_tokens: int, output_tokens: int, block: int) -> int | None:
        """Whole blocks of the prefix, for each sharing request."""
        return self.sharing(requests) * _whole_blocks(self.tokens, block)

    def describe(self, input_tokens: int) -> str:
        """Such as ``1152 (1024 shared by 75 %)``."""
        return f"{input_tokens} ({self.tokens} shared by {self.share:.0%})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations(PromptSource):
    """Conversations of several turns; each turn sends everything said before, and ``input_tokens`` new ones.

    A turn is sent when the one before it is over, so this needs a closed loop: ``max_concurrency`` is the
    number of conversations held at once. The earlier answers in a prompt are scripted, ``output_tokens`` random tokens
    each, because requests are made before the clock starts. The cache can therefore serve the earlier
    prompt, and not the answer that followed it.

    Args:
        turns: Requests in one conversation; the last conversation may be shorter.
    """

    turns: int
    kind: Literal["conversations"] = field(default="conversations", init=False)

    def __post_init__(self) -> None:
        _require(self, "turns", _whole(self.turns, 2), "a whole number, 2 or more")

    def prompt_tokens(self, turn: int, *, input_tokens: int, output_tokens: int) -> int:
        """Length of the prompt of ``turn``, from 0."""
        return (turn + 1) * input_tokens + turn * output_tokens

    def reusable_tokens(self, *, requests: int, input_tokens: int, output_tokens: int, block: int) -> int | None:
        """Whole blocks of the prompt before, for every turn but the first."""
        before = (
            self.prompt_tokens(place % self.turns - 1, input_tokens=input_tokens, output_tokens=output_tokens)
            for place in range(requests)
            if place % self.turns
        )
        return sum(_whole_blocks(tokens, block) for tokens in before)

    def describe(self, input_tokens: int) -> str:
        """Such as ``128 in each of 4 turns``."""
        return f"{input_tokens} in each of {self.turns} turns"


@dataclass(frozen=True, slots=True, kw_only=True)
class FillContext(PromptSource):
    """Random prompts as long as a share of the engine's context, which is known when it is measured.

    Args:
        share: Share of the context the prompt fills; prompt and answer together must fit.
    """

    share: float = 0.9
    kind: Literal["fill-context"] = field(default="fill-context", init=False)
    sized = False

    def __post_init__(self) -> None:
        _require(self, "share", _share(self.share), "above 0 and at most 1")

    def describe(self, input_tokens: int) -> str:
        """Such as ``90 % of the context``."""
        return f"{self.share:.0%} of the context"


@dataclass(frozen=True, slots=True, kw_only=True)
class _FilePrompts(PromptSource):
    """What sources that read a file have in common. A relative path counts from the current directory."""

    path: str
    sized = False
    from_file = True

    def __post_init__(self) -> None:
        _require(self, "path", isinstance(self.path, str) and bool(self.path), "the path of a file, as text")

    def reusable_tokens(self, *, requests: int, input_tokens: int, output_tokens: int, block: int) -> int | None:
        """None: texts may share openings, and how many tokens those are only the engine's tokenizer knows."""
        return None

    def describe(self, input_tokens: int) -> str:
        """The file's name."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareGPT(_FilePrompts):
    """The opening questions of a ShareGPT-format JSON file, in the file's order.

    The file is a list of ``{"conversations": [{"from": "human", "value": "…"}, …]}``; conversations that no human
    opens are passed over. Every answer has the workload's ``output_tokens``.
    """

    kind: Literal["sharegpt"] = field(default="sharegpt", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLines(_FilePrompts):
    """Prompts of one's own: a JSONL file with one ``{"prompt": …, "output_tokens": …}`` a line.

    ``prompt`` is text, or a list of token ids (``completions`` only); ``output_tokens`` may be left out, and is then
    the workload's.
    """

    kind: Literal["lines"] = field(default="lines", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReplay(_FilePrompts):
    """Arrivals and lengths recorded elsewhere: a JSONL file with one request a line, in order of time.

    A line is ``{"timestamp": seconds, "input_tokens": …, "output_tokens": …}``, or one of a Mooncake trace,
    ``{"timestamp": milliseconds, "input_length": …, "output_length": …, "hash_ids": […]}``: there each id stands for a
    block of 512 prompt tokens, and equal ids for equal blocks, so that what the recorded service could share the
    engine can share too. Prompts are random tokens; the first request is due at once.

    Args:
        speed: How many times faster than recorded: 2 halves every gap.
    """

    speed: float = 1.0
    kind: Literal["trace"] = field(default="trace", init=False)

    def __post_init__(self) -> None:
        _FilePrompts.__post_init__(self)
        speed = self.speed
        usable = isinstance(speed, (int, float)) and not isinstance(speed, bool) and 0 < speed < float("inf")
        _require(self, "speed", usable, "a number above 0")


def _whole_blocks(tokens: int, block: int) -> int:
    return tokens // block * block


PROMPT_SOURCES: dict[str, type[PromptSource]] = {
    "random": RandomPrompts,
    "shared-prefix": SharedPrefix,
    "conversations": Conversations,
    "fill-context": FillContext,
    "sharegpt": ShareGPT,
    "lines": PromptLines,
    "trace": TraceReplay,
}
"""Every source by its ``kind``."""
