"""Where a run took place: facts, gathered once, that make two runs comparable or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllmperf.domain.engine import Device

__all__ = ["Environment", "Gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver describes it; ``memory_bytes`` is None where the driver does not say."""

    index: int
    uuid: str
    name: str
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Facts of the machine and of the software under test; None where unknown.

    ``hardware`` is what limits match: the GPU's product name, or ``CPU <model>``.
    ``host`` is the machine's name in its network.
    ``packages`` maps distribution names (vllm, torch, …) to versions.
    """

    hardware: str
    device: Device
    gpus: tuple[Gpu, ...]
    driver: str | None
    cpu: str
    cores: int
    memory_bytes: int
    platform: str
    python: str
    packages: Mapping[str, str]
    commit: str | None
    dirty: bool | None
    warnings: tuple[str, ...]
    host: str | None = None
