"""Factors: the settings in which two engines differ, those that only work together as one.

What a design of experiments switches on and off. Settings are compared as launched, on one device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pytest_vllmperf.domain.engine import ArgValue, EngineConfig, flags
from pytest_vllmperf.errors import EngineConfigError

__all__ = ["Factor", "Setting", "differing", "engine_at", "learnt"]

Kind = Literal["flag", "env", "field"]

_FIELDS = ("model", "served_model_name", "python", "command", "gpus")
"""What else may differ between two engines: another model, another vLLM, another number of GPUs."""

_TOGETHER: tuple[frozenset[str], ...] = (
    frozenset(("kv-offloading-backend", "kv-offloading-size")),
    frozenset(("tensor-parallel-size", "pipeline-parallel-size", "gpus")),
    frozenset(("model", "served_model_name", "quantization", "tokenizer", "hf-config-path")),
    frozenset(("enable-lora", "lora-modules", "max-loras", "max-lora-rank", "max-cpu-loras")),
    frozenset(("enable-auto-tool-choice", "tool-call-parser")),
    frozenset(("enable-eplb", "eplb-config", "enable-expert-parallel")),
)
"""Settings of which one without the other cannot start, or does nothing, in every vLLM."""

_LEARNT: dict[str, frozenset[str]] = {
    "hma-connector": frozenset(
        ("kv-offloading-backend", "kv-offloading-size", "kv-transfer-config", "disable-hybrid-kv-cache-manager")
    ),
    "batched-tokens": frozenset(("max-num-batched-tokens", "max-num-seqs", "enable-chunked-prefill", "max-model-len")),
    "kv-cache-too-small": frozenset(("max-model-len", "kv-cache-dtype", "gpu-memory-utilization", "quantization")),
    "too-few-gpus": frozenset(("tensor-parallel-size", "pipeline-parallel-size", "gpus")),
    "tool-choice": frozenset(("enable-auto-tool-choice", "tool-call-parser")),
}
"""Settings that turn out to belong together when a launch with only some of them fails, by the id of the hint."""

_HINT_ID = re.compile(r"\[([a-z0-9-]+)\]\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One thing in which two engines differ; None where an engine leaves it out."""

    kind: Kind
    name: str
    base: object
    candidate: object

    @property
    def text(self) -> str:
        """``max-num-seqs 256 → 2``."""
        return f"{self.name} {_shown(self.base)} → {_shown(self.candidate)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """Settings that are switched together: usually one flag."""

    settings: tuple[Setting, ...]

    @property
    def name(self) -> str:
        """The names of its settings, joined by ``+``."""
        return "+".join(setting.name for setting in self.settings)

    @property
    def text(self) -> str:
        """What switching it on changes, for people."""
        return ", ".join(setting.text for setting in self.settings)


def differing(base: EngineConfig, candidate: EngineConfig) -> tuple[Factor, ...]:
    """The factors between two engines, both as launched on one device (see :meth:`EngineConfig.on`).

    Settings that either engine declares as ``together``, and those known to work only together, make one factor.

    Raises:
        EngineConfigError: The two do not differ in anything that is launched, or one is not launched here.
    """
    for engine in (base, candidate):
        if engine.url is not None:
            raise EngineConfigError(
                f"engine {engine.name!r} runs already at {engine.url}: only engines that are launched here can be "
                "taken apart"
            )
    found = [
        *_differences("flag", base.args, candidate.args),
        *_differences("env", base.env, candidate.env),
        *(
            Setting(kind="field", name=name, base=getattr(base, name), candidate=getattr(candidate, name))
            for name in _FIELDS
            if getattr(base, name) != getattr(candidate, name)
        ),
    ]
    if not found:
        raise EngineConfigError(
            f"engines {base.name!r} and {candidate.name!r} do not differ in any flag, variable, model or command on "
            "this device: there is nothing to attribute; name two that do"
        )
    factors = tuple(Factor(settings=(setting,)) for setting in found)
    return _merged(factors, (*_TOGETHER, *map(frozenset, (*base.together, *candidate.together))))


def learnt(factors: Sequence[Factor], failure: str) -> tuple[Factor, ...] | None:
    """The factors after a launch with only some of them failed; None when the failure teaches nothing.

    Args:
        factors: Those of the plan under way.
        failure: The message of the failed launch, which names the hint found for it.
    """
    groups = tuple(_LEARNT[hint] for hint in _HINT_ID.findall(failure) if hint in _LEARNT)
    merged = _merged(factors, groups)
    return merged if len(merged) < len(factors) else None


def engine_at(
    base: EngineConfig, candidate: EngineConfig, factors: Sequence[Factor], point: Sequence[bool], *, name: str
) -> EngineConfig:
    """The engine with the factors of ``point`` set as in the candidate, all others as in the base.

    Raises:
        EngineConfigError: vLLM cannot work with this combination.
    """
    args: dict[str, ArgValue] = dict(base.args)
    env, fields = dict(base.env), {name: getattr(base, name) for name in _FIELDS}
    places: dict[str, dict[str, Any]] = {"flag": args, "env": env, "field": fields}
    for factor, on in zip(factors, point, strict=True):
        for setting in factor.settings:
            place, value = places[setting.kind], setting.candidate if on else setting.base
            if value is None and setting.kind != "field":
                place.pop(setting.name, None)
            else:
                place[setting.name] = value
    return replace(
        base,
        name=name,
        args=args,
        env=env,
        requires=tuple(dict.fromkeys((*base.requires, *candidate.requires))),
        startup_timeout_s=max(base.startup_timeout_s, candidate.startup_timeout_s),
        together=(),
        **fields,
    )


def _differences(kind: Kind, base: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[Setting]:
    def same(name: str) -> bool:
        if kind == "flag":  # 2048 and "2048" are one command line
            return flags({name: base.get(name)}) == flags({name: candidate.get(name)})
        return bool(base.get(name) == candidate.get(name))

    return [
        Setting(kind=kind, name=name, base=base.get(name), candidate=candidate.get(name))
        for name in dict.fromkeys((*base, *candidate))
        if not same(name)
    ]


def _merged(factors: Sequence[Factor], groups: Iterable[frozenset[str]]) -> tuple[Factor, ...]:
    """``factors`` with those that share a group put together, in their old order."""
    merged = list(factors)
    for group in groups:
        inside = [f for f in merged if any(s.name in group for s in f.settings)]
        if len(inside) < 2:
            continue
        place = merged.index(inside[0])
        union = Factor(settings=tuple(s for f in inside for s in f.settings))
        merged = [f for f in merged if f not in inside]
        merged.insert(place, union)
    return tuple(merged)


def _shown(value: object) -> str:
    if value is None:
        return "(default)"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(str(part) for part in value)
    return str(value)
