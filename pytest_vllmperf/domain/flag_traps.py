"""Flags that vLLM takes without a word and that do not do what they say: found before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["find_trap", "is_vllm", "unfamiliar"]

_SWITCHES = frozenset(
    """async-scheduling disable-hybrid-kv-cache-manager disable-log-stats disable-custom-all-reduce
    enable-auto-tool-choice enable-chunked-prefill enable-dbo enable-eplb enable-expert-parallel enable-log-requests
    enable-lora enable-prefix-caching enable-prompt-embeds enable-sleep-mode enforce-eager skip-tokenizer-init
    trust-remote-code""".split()  # noqa: SIM905 - a table of names reads best as words
)
"""Flags without a value in every version from 0.14.0 to 0.32.0: one given to them becomes the model's name."""

_FLAGS = _SWITCHES | frozenset(
    """attention-backend block-size chat-template compilation-config dtype gpu-memory-utilization kv-cache-dtype
    kv-offloading-backend kv-offloading-size kv-transfer-config load-format max-logprobs max-model-len
    max-num-batched-tokens max-num-seqs pipeline-parallel-size quantization seed speculative-config
    tensor-parallel-size tokenizer""".split()  # noqa: SIM905 - as above
)
_SHORTEST = 5
"""Shorter beginnings fit too many flags to say which one was meant."""


def is_vllm(command: Sequence[str] | None) -> bool:
    """Whether ``command`` starts vLLM, as far as one can tell; None is the default, which does."""
    return command is None or any(_is_vllm(part.rpartition("/")[2]) for part in command)


def _is_vllm(name: str) -> bool:
    """An executable or module of vLLM's own, not a path that happens to have the word in it."""
    return name == "vllm" or name.startswith("vllm.")


def find_trap(args: Mapping[str, object]) -> str | None:
    """What is wrong with the flags of a vLLM engine, as a sentence that says how to right it; None when nothing is."""
    for flag, value in args.items():
        if whole := _abbreviated(flag):
            return f"{flag!r} is an abbreviation, which vLLM takes until another flag begins alike: write {whole!r}"
        text = value if isinstance(value, str) else None
        if text is not None and text.casefold() in ("true", "false"):
            return (
                f"{flag!r}: {value!r} is a string, and vLLM's switches take no value (it would be read as the model): "
                f"write {flag!r}: {text.casefold() == 'true'}"
            )
        if flag in _SWITCHES and not isinstance(value, (bool, type(None))):
            return f"{flag!r}: {value!r}: the flag is a switch and takes no value: write True, False or None"
    if args.get("kv-offloading-backend") is not None and not args.get("kv-offloading-size"):
        return (
            f"'kv-offloading-backend': {args['kv-offloading-backend']!r} offloads nothing without a size: add "
            "'kv-offloading-size' in GiB"
        )
    return None


def unfamiliar(args: Mapping[str, object]) -> bool:
    """Whether some flag is not among those that every version of vLLM from 0.14.0 to 0.32.0 has."""
    return any(flag not in _FLAGS for flag, value in args.items() if value is not None)


def _abbreviated(flag: str) -> str | None:
    if len(flag) < _SHORTEST or flag in _FLAGS:
        return None
    return next((whole for whole in sorted(_FLAGS) if whole.startswith(flag)), None)
