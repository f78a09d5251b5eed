"""Reads from an engine's log, ``/metrics`` and ``/server_info`` which optimisations are active.

The lines and labels were read in vLLM 0.14.0, 0.20.2, 0.25.1 and 0.32.0. What the server was told
(``non-default args``) proves nothing: only what the engine made of it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pytest_vllmperf.domain.engine import ArgValue
from pytest_vllmperf.domain.evidence import Evidence, Source, State, requested
from pytest_vllmperf.domain.log_lines import Line, log_lines

__all__ = ["OPTIMISATIONS", "gather"]

_LONGEST_PROOF = 240
_ENGINE_ROLES = ("EngineCore", "Worker", "VllmWorker")


def gather(
    *,
    log: str,
    args: Mapping[str, ArgValue],
    metrics: str = "",
    server_info: Mapping[str, object] | None = None,
) -> tuple[Evidence, ...]:
    """Evidence for each of :data:`OPTIMISATIONS`, in that order.

    Args:
        log: The engine's log.
        args: Its flags as launched (``EngineHandle.config.args``).
        metrics: The text of ``/metrics``, empty when there is none.
        server_info: The answer of ``/server_info?config_format=json`` (development mode only), None without.
    """
    config = (server_info or {}).get("vllm_config")
    facts = _Facts(lines=tuple(log_lines(log)), metrics=metrics, server=config if isinstance(config, dict) else {})
    asked = requested(args)
    return tuple(_judged(name, probe(facts), asked.get(name)) for name, probe in _PROBES.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One thing found out: ``value`` is what is active, None when that is unknown."""

    active: bool | None
    value: str | None
    proof: str
    source: Source


def _judged(name: str, found: _Finding, asked: str | None) -> Evidence:
    state: State = "unknown" if found.active is None else "confirmed" if found.active else "refuted"
    if state == "confirmed" and asked not in (None, "on", "off") and not _same(str(asked), found.value or ""):
        state = "refuted"
    return Evidence(
        optimisation=name,
        state=state,
        value=found.value,
        requested=asked,
        proof=found.proof,
        source=found.source,
    )


def _same(asked: str, value: str) -> bool:
    """Whether ``value`` is what was asked for, or a kernel of it: ``awq`` runs as ``awq_marlin``."""
    asked, value = asked.casefold(), value.casefold()
    return value == asked or value.startswith(f"{asked}_") or asked.startswith(f"{value} ")


class _Facts:
    """What the three sources say, looked up by name."""

    def __init__(self, *, lines: Sequence[Line], metrics: str, server: Mapping[str, object]) -> None:
        self.lines = lines
        self._server = server
        self._metrics = metrics

    @cached_property
    def engine(self) -> str:
        """The configuration the engine core printed when it began; empty when it did not."""
        begins = (line.text for line in self.lines if re.match(r"Initializing a V\d+ LLM engine", line.text))
        return next(begins, "")

    @cached_property
    def given(self) -> str | None:
        """Flags as the server understood them; None when it did not say."""
        found = (line.text for line in self.lines if line.text.startswith("non-default args:"))
        return next(found, None)

    @cached_property
    def cache(self) -> dict[str, str]:
        """Labels of ``vllm:cache_config_info``."""
        line = re.search(r"^vllm:cache_config_info\{(.*)\} ", self._metrics, re.MULTILINE)
        return dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', line[1])) if line else {}

    def counter(self, name: str) -> float:
        """Sum of a counter over engines; 0 where there is none."""
        found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? ([0-9.e+]+)$", self._metrics, re.MULTILINE)
        return sum(_number(value) for value in found)

    def line(self, pattern: str) -> tuple[Line, re.Match[str]] | None:
        """The last line that matches; one of the engine core or a worker before any of the API server."""
        found = [(line, match) for line in self.lines if (match := re.search(pattern, line.text))]
        of_engine = [pair for pair in found if pair[0].role.startswith(_ENGINE_ROLES)]
        return next(reversed(of_engine or found), None)

    def setting(self, name: str, pattern: str = r"[^,\s]+") -> str | None:
        """A value of the engine core's configuration line."""
        match = re.search(rf"[ {{,(]'?{name}'?[=:] ?({pattern})", self.engine)
        return match[1] if match else None

    def server(self, section: str, name: str) -> object:
        """A value of ``/server_info``, None without."""
        part = self._server.get(section)
        return part.get(name) if isinstance(part, dict) else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _quoted(line: Line) -> str:
    text = f"{line.role}: {line.text}" if line.role else line.text
    return text if len(text) <= _LONGEST_PROOF else f"{text[: _LONGEST_PROOF - 1]}…"


def _unknown(missing: str) -> _Finding:
    return _Finding(active=None, value=None, proof=missing, source="none")


def _agreed(findings: Sequence[_Finding], missing: str) -> _Finding:
    """What all sources say; unknown when they contradict each other, or none says anything."""
    if not findings:
        return _unknown(missing)
    other = next((f for f in findings if f.active != findings[0].active), None)
    return findings[0] if other is None else _unknown(f"{findings[0].proof}, but {other.proof}")


# ---------------------------------------------------------------------------- one probe for each optimisation


def _v1_engine(facts: _Facts) -> _Finding:
    match = re.match(r"Initializing a V(\d+) LLM engine \([^)]*\)", facts.engine)
    if match is None:
        return _unknown("no line 'Initializing a V1 LLM engine' in the log")
    return _Finding(active=match[1] != "0", value=f"V{match[1]}", proof=f"EngineCore: {match[0]}", source="log")


def _attention_backend(facts: _Facts) -> _Finding:
    found = facts.line(r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z0-9_]+) (?:attention )?backend(?:\.| out of| \(|$)")
    if found is None:
        return _unknown("no line 'Using … backend' in the log")
    return _Finding(active=True, value=found[1][1], proof=_quoted(found[0]), source="log")


_NO_ASYNC_ON_CPU = ((0, 14), (0, 32))
"""Versions whose CPU platform sets async_scheduling=False whatever was asked (read in the code; on 0.32.0 tried)."""


def _async_scheduling(facts: _Facts) -> _Finding:
    findings = []
    said = facts.line(r"Asynchronous scheduling is (enabled|disabled)")
    never = _never_asynchronous(facts)
    if said and not (never and not said[0].role.startswith(_ENGINE_ROLES)):
        findings.append(_switched(said[1][1] == "enabled", _quoted(said[0]), "log"))
    if off := facts.line(r"Async scheduling (?:will be disabled|is disabled|(?:is )?not (?:supported|compatible))"):
        findings.append(_switched(False, _quoted(off[0]), "log"))
    findings += _of_server(facts, "scheduler_config", "async_scheduling")
    if never:
        findings.append(_switched(False, never, "log"))
    return _agreed(
        findings,
        'this vLLM logs nothing about async scheduling; /server_info tells with env={"VLLM_SERVER_DEV_MODE": "1"}',
    )


def _never_asynchronous(facts: _Facts) -> str | None:
    """Why this engine cannot schedule asynchronously, whatever its API server logged before it asked the platform."""
    version = re.search(r"LLM engine \(v(\d+)\.(\d+)", facts.engine)
    if facts.setting("device_config") != "cpu" or version is None:
        return None
    first, last = _NO_ASYNC_ON_CPU
    if not first <= (int(version[1]), int(version[2])) <= last:
        return None
    return "EngineCore: device_config=cpu: vLLM's CPU platform turns async scheduling off"


def _switched(on: bool, proof: str, source: Source) -> _Finding:
    return _Finding(active=on, value="on" if on else "off", proof=proof, source=source)


def _of_server(facts: _Facts, section: str, name: str) -> list[_Finding]:
    value = facts.server(section, name)
    if not isinstance(value, bool):
        return []
    return [_switched(value, f"/server_info: {section}.{name}={value}", "server_info")]


def _of_engine(facts: _Facts, name: str) -> list[_Finding]:
    value = facts.setting(name)
    if value not in ("True", "False"):
        return []
    return [_switched(value == "True", f"EngineCore: {name}={value}", "log")]


_CONNECTORS = {"OffloadingConnector": "native", "LMCacheConnectorV1": "lmcache", "LMCacheMPConnector": "lmcache"}


def _kv_offloading(facts: _Facts) -> _Finding:
    size = _number(facts.cache.get("kv_offloading_size") or _given(facts, "kv_offloading_size") or "")
    created = facts.line(r"Creating v1 connector with name: (\w+)")
    if created:
        backend = _CONNECTORS.get(created[1][1], created[1][1])
        proof = _quoted(created[0])
        if stored := facts.counter("vllm:kv_offload_store_bytes_total") or facts.counter("vllm:kv_offload_total_bytes"):
            proof += f"; stored {stored:.0f} bytes so far"
        value = f"{backend} {size:g} GiB" if size else backend
        return _Finding(active=True, value=value, proof=proof, source="log")
    if facts.given is None:
        return _unknown("neither a connector nor the server's flags are in the log")
    if _given(facts, "kv_transfer_config") is not None or size:
        return _unknown("it was asked for, but the log shows no line 'Creating v1 connector'")
    without = "kv_offloading_backend without kv_offloading_size: only the size turns it on"
    why = without if _given(facts, "kv_offloading_backend") else "no KV connector was created, and none was asked for"
    return _switched(False, f"the log: {why}", "log")


def _given(facts: _Facts, name: str) -> str | None:
    match = re.search(rf"'{name}': ([^,}}]+)", facts.given or "")
    return match[1] if match else None


def _kv_cache_dtype(facts: _Facts) -> _Finding:
    findings = []
    if value := facts.setting("kv_cache_dtype"):
        findings.append(_dtype(value, f"EngineCore: kv_cache_dtype={value}", "log"))
    if value := facts.cache.get("cache_dtype"):
        findings.append(_dtype(value, f'/metrics: cache_config_info cache_dtype="{value}"', "metrics"))
    return _agreed(findings, "the engine's configuration is not in the log")


def _dtype(value: str, proof: str, source: Source) -> _Finding:
    return _Finding(active=value != "auto", value=value, proof=proof, source=source)


def _prefix_caching(facts: _Facts) -> _Finding:
    findings = _of_engine(facts, "enable_prefix_caching")
    label = facts.cache.get("enable_prefix_caching")
    if label in ("True", "False"):
        proof = f'/metrics: cache_config_info enable_prefix_caching="{label}"'
        findings.append(_switched(label == "True", proof, "metrics"))
    return _agreed(findings, "the engine's configuration is not in the log")


def _chunked_prefill(facts: _Facts) -> _Finding:
    findings = _of_engine(facts, "enable_chunked_prefill")
    findings += _of_server(facts, "scheduler_config", "enable_chunked_prefill")
    return _agreed(findings, "the engine's configuration is not in the log")


def _quantization(facts: _Facts) -> _Finding:
    value = facts.setting("quantization")
    if value is None:
        return _unknown("the engine's configuration is not in the log")
    on = value != "None"
    return _Finding(active=on, value=value if on else "off", proof=f"EngineCore: quantization={value}", source="log")


def _cuda_graphs(facts: _Facts) -> _Finding:
    mode = facts.setting("cudagraph_mode", r"<CUDAGraphMode\.\w+")
    name = mode.rpartition(".")[2] if mode else None
    if name == "NONE":
        return _switched(False, "EngineCore: cudagraph_mode=NONE", "log")
    captured = facts.line(r"Graph capturing finished")
    if captured is None:
        return _unknown("no line 'Graph capturing finished' in the log")
    return _Finding(active=True, value=name or "on", proof=_quoted(captured[0]), source="log")


def _compilation(facts: _Facts) -> _Finding:
    mode = facts.setting("mode", r"<CompilationMode\.\w+")
    name = mode.rpartition(".")[2] if mode else None
    if name == "NONE":
        return _switched(False, "EngineCore: compilation mode=NONE", "log")
    compiled = facts.line(r"torch\.compile took|Dynamo bytecode transform time|Directly load (?:the compiled|AOT)")
    if compiled is None:
        return _unknown("no line 'torch.compile took …' in the log")
    return _Finding(active=True, value=name or "on", proof=_quoted(compiled[0]), source="log")


def _speculative_decoding(facts: _Facts) -> _Finding:
    value = facts.setting("speculative_config", r"None|SpeculativeConfig\([^)]*\)?")
    if value is None:
        return _unknown("the engine's configuration is not in the log")
    method = re.search(r"method=['\"]?([\w-]+)", value)
    shown = "off" if value == "None" else method[1] if method else "on"
    proof = f"EngineCore: speculative_config={value}"[:_LONGEST_PROOF]
    return _Finding(active=value != "None", value=shown, proof=proof, source="log")


def _tensor_parallelism(facts: _Facts) -> _Finding:
    size = facts.setting("tensor_parallel_size", r"\d+")
    if size is None:
        return _unknown("the engine's configuration is not in the log")
    return _Finding(active=size != "1", value=size, proof=f"EngineCore: tensor_parallel_size={size}", source="log")


def _sleep_mode(facts: _Facts) -> _Finding:
    findings = _of_server(facts, "model_config", "enable_sleep_mode")
    if said := facts.line(r"sleep mode requires it|Using sleep-mode backend|CuMemAllocator: sleep freed"):
        findings.append(_switched(True, _quoted(said[0]), "log"))
    elif facts.given is not None and _given(facts, "enable_sleep_mode") is None:
        findings.append(_switched(False, "the log: the server's flags do not turn it on", "log"))
    return _agreed(findings, "no line about sleep mode in the log")


_PROBES: dict[str, Callable[[_Facts], _Finding]] = {
    "V1 engine": _v1_engine,
    "attention backend": _attention_backend,
    "async scheduling": _async_scheduling,
    "KV offloading": _kv_offloading,
    "KV cache dtype": _kv_cache_dtype,
    "prefix caching": _prefix_caching,
    "chunked prefill": _chunked_prefill,
    "quantization": _quantization,
    "CUDA graphs": _cuda_graphs,
    "compilation": _compilation,
    "speculative decoding": _speculative_decoding,
    "tensor parallelism": _tensor_parallelism,
    "sleep mode": _sleep_mode,
}

OPTIMISATIONS: tuple[str, ...] = tuple(_PROBES)
"""Every optimisation evidence is gathered for."""
