"""One engine of a run's matrix, what became of it so far, and what the report says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.adapters.model_files import twin_of
from pytest_vllmperf.domain.report import EngineReport
from pytest_vllmperf.errors import EngineError, EngineUnavailable
from pytest_vllmperf.preflight import Checked

if TYPE_CHECKING:
    from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle
    from pytest_vllmperf.keeping import Running

__all__ = ["Slot"]


@dataclass(slots=True, kw_only=True)
class Slot:
    """One engine of the matrix and what became of it."""

    config: EngineConfig
    launches: int = 0
    process: Running | None = None
    handle: EngineHandle | None = None
    error: EngineError | None = None
    gpu_uuids: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    log_path: Path | None = None
    version: str | None = None
    released: bool = False
    checked: Checked = field(default_factory=Checked)
    attached: bool = False
    device_before: Mapping[str, int] = field(default_factory=dict)
    fresh: bool = False
    kept: bool = False
    uses: int = 0

    def report(self) -> EngineReport:
        """What became of it."""
        state = "measured"
        if self.error is not None:
            state = "skipped" if isinstance(self.error, EngineUnavailable) else "failed"
        return EngineReport(
            name=self.config.name,
            model=self.config.model_name,
            state=state,
            reason=str(self.error) if self.error else None,
            command=self.command,
            env=dict(self.config.env),
            version=self.version,
            log_path=str(self.log_path) if self.launches or self.uses else None,
            launches=self.launches,
            warnings=(*self.checked.warnings, *_twin_warning(self.config.model), *_reuse_warning(self.uses)),
            reused=self.uses > 0,
        )


def _reuse_warning(uses: int) -> tuple[str, ...]:
    return (f"served {uses} earlier runs (--vllmperf-reuse): results are no baseline",) if uses else ()


def _twin_warning(model: str) -> tuple[str, ...]:
    of = twin_of(model)
    return () if of is None else (f"shape twin of {of}: dummy weights; speed and memory are real, answers are not",)
