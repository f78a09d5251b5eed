"""What proves that an optimisation is active, or that it is not: the types, and what a configuration asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_vllmperf.domain.arguments import ArgValue

__all__ = ["Evidence", "Source", "State", "requested", "unmet"]

State = Literal["confirmed", "refuted", "unknown"]
Source = Literal["log", "metrics", "server_info", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Whether one optimisation is active on a running engine.

    Args:
        optimisation: Its name, such as ``prefix caching``.
        state: ``confirmed`` when it is active (as asked, where a value was asked for), ``refuted`` when it is not,
            ``unknown`` when nothing proves either.
        value: What is active, such as ``fp8`` or ``FLASH_ATTN``; None when unknown.
        requested: What the flags ask for: ``on``, ``off``, a value, or None when they do not mention it.
        proof: The line of the log, the metric or the setting that tells; for ``unknown`` what is missing.
        source: Where the proof was found.
    """

    optimisation: str
    state: State
    value: str | None
    requested: str | None
    proof: str
    source: Source

    @property
    def met(self) -> bool | None:
        """Whether what was asked for is so; None when nothing was asked for or nothing is known."""
        if self.requested is None or self.state == "unknown":
            return None
        return self.state == ("refuted" if self.requested == "off" else "confirmed")


def unmet(evidence: Iterable[Evidence], *, require: bool = False) -> tuple[str, ...]:
    """One sentence for each optimisation that is not as asked; with ``require`` also for each that nobody can prove."""
    sentences = []
    for item in evidence:
        if item.met is False:
            sentences.append(f"{item.optimisation}: asked for {item.requested}, but {item.proof}")
        elif require and item.requested is not None and item.state == "unknown":
            sentences.append(f"{item.optimisation}: asked for {item.requested}, and nothing proves it: {item.proof}")
    return tuple(sentences)


def requested(args: Mapping[str, ArgValue]) -> dict[str, str | None]:
    """What an engine's flags, as launched, ask for; an optimisation they do not mention is missing.

    ``on`` and ``off`` for switches, else the value asked for.
    """
    found = {name: ask(args) for name, ask in _REQUESTS.items()}
    return {name: asked for name, asked in found.items() if asked is not None}


_Ask = Callable[[Mapping[str, ArgValue]], "str | None"]


def _switch(flag: str) -> _Ask:
    def ask(args: Mapping[str, ArgValue]) -> str | None:
        value = args.get(flag)
        return None if value is None else "on" if value else "off"

    return ask


def _value(flag: str, *, plain: str = "auto") -> _Ask:
    def ask(args: Mapping[str, ArgValue]) -> str | None:
        value = args.get(flag)
        return None if value is None or str(value) == plain else str(value)

    return ask


def _offloading(args: Mapping[str, ArgValue]) -> str | None:
    if args.get("kv-transfer-config") is not None:
        return "on"
    try:
        size = float(str(args.get("kv-offloading-size")))
    except ValueError:
        return None
    return f"{args.get('kv-offloading-backend') or 'native'} {size:g} GiB" if size > 0 else "off"


def _tensor_parallelism(args: Mapping[str, ArgValue]) -> str | None:
    size = args.get("tensor-parallel-size")
    return None if size is None else "off" if str(size) == "1" else str(size)


def _speculation(args: Mapping[str, ArgValue]) -> str | None:
    config = args.get("speculative-config")
    return None if config is None else str(_mapping(config).get("method") or "on")


def _attention(args: Mapping[str, ArgValue]) -> str | None:
    backend = args.get("attention-backend") or _mapping(args.get("attention-config")).get("backend")
    return None if backend is None else str(backend)


def _compilation(key: str, off: tuple[str, ...]) -> _Ask:
    def ask(args: Mapping[str, ArgValue]) -> str | None:
        if args.get("enforce-eager"):
            return "off"
        value = _mapping(args.get("compilation-config")).get(key)
        return None if value is None else "off" if str(value).upper() in off else "on"

    return ask


def _mapping(value: ArgValue) -> Mapping[str, object]:
    """A flag given as a dict, or as the JSON of one; empty for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


_REQUESTS: dict[str, _Ask] = {
    "attention backend": _attention,
    "async scheduling": _switch("async-scheduling"),
    "KV offloading": _offloading,
    "KV cache dtype": _value("kv-cache-dtype"),
    "prefix caching": _switch("enable-prefix-caching"),
    "chunked prefill": _switch("enable-chunked-prefill"),
    "quantization": _value("quantization"),
    "CUDA graphs": _compilation("cudagraph_mode", ("NONE",)),
    "compilation": _compilation("mode", ("0", "NONE")),
    "speculative decoding": _speculation,
    "tensor parallelism": _tensor_parallelism,
    "sleep mode": _switch("enable-sleep-mode"),
}
