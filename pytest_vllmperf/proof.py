"""Looks at a running engine for what proves that its optimisations are active."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters import startup_log
from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.domain.optimisations import gather
from pytest_vllmperf.domain.report import redacted

if TYPE_CHECKING:
    from pytest_vllmperf.domain.engine import EngineHandle
    from pytest_vllmperf.domain.evidence import Evidence

__all__ = ["Proof", "prove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What an engine's log, metrics and settings tell about its configuration; ``warnings`` come with advice."""

    evidence: tuple[Evidence, ...]
    warnings: tuple[str, ...]


def prove(handle: EngineHandle) -> Proof:
    """Gather evidence from a live engine. A source that does not answer proves nothing and is no error.

    ``/server_info`` exists only where the engine's own ``env`` sets ``VLLM_SERVER_DEV_MODE``.
    """
    with ControlClient(handle.base_url, handle.api_key) as control:
        metrics, server_info = control.metrics_text(), control.server_info()
    log = startup_log.read_log(Path(handle.log_path)) if handle.log_path else ""
    env = {**handle.config.env, "VLLM_API_KEY": handle.api_key or ""}
    shown = partial(redacted, env=env, command=handle.command)
    evidence = gather(log=log, args=handle.config.args, metrics=metrics, server_info=server_info)
    if handle.config.is_template and not handle.config.serves_vllm:  # nobody expects vLLM's of another server
        evidence = tuple(item for item in evidence if item.requested is not None)
    return Proof(
        evidence=tuple(replace(item, proof=shown(item.proof)) for item in evidence),
        warnings=tuple(shown(warning) for warning in startup_log.warnings_in(log)),
    )
