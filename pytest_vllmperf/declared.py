"""What the declaring hooks returned, checked and by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.workload import BUILT_IN_WORKLOADS, Workload
from pytest_vllmperf.errors import ConfigError

if TYPE_CHECKING:
    from pytest_vllmperf.domain.custom_metrics import CustomMetric
    from pytest_vllmperf.domain.quality import QualityTask

__all__ = ["named", "workloads_by_name"]

Named = TypeVar("Named", EngineConfig, Workload, "QualityTask", "CustomMetric")


def named(
    batches: Iterable[Iterable[Named]], kind: type[Named], *, hook: str, replaces: bool = False
) -> dict[str, Named]:
    """Put what a hook's implementations returned under their names.

    Args:
        batches: One iterable for each implementation.
        kind: What its items must be.
        hook: The hook's name, for messages.
        replaces: Whether a later item of the same name may take the place of an earlier one.

    Raises:
        ConfigError: Something else than ``kind`` was returned, or a name was used twice.
    """
    found: dict[str, Named] = {}
    for batch in batches:
        if isinstance(batch, kind) or not isinstance(batch, Iterable):
            raise ConfigError(f"{hook} must return a list of {kind.__name__}, got {batch!r}")
        for item in batch:
            if not isinstance(item, kind):
                raise ConfigError(f"{hook} must return {kind.__name__} objects, got {item!r}")
            if item.name in found and not replaces:
                raise ConfigError(f"{hook}: the name {item.name!r} is used twice; give each its own")
            twin = next((name for name in found if name.casefold() == item.name.casefold() and name != item.name), None)
            if twin is not None and kind is EngineConfig:
                raise ConfigError(
                    f"{hook}: the name {item.name!r} differs from {twin!r} in case only: their logs would be one file "
                    "where the file system knows no case; rename one"
                )
            found[item.name] = item
    return found


def workloads_by_name(batches: Iterable[Iterable[Workload]]) -> dict[str, Workload]:
    """The built-in workloads and the user's; a user's one of the same name takes its place."""
    own = named(batches, Workload, hook="pytest_vllmperf_workloads")
    return {**{w.name: w for w in BUILT_IN_WORKLOADS}, **own}
