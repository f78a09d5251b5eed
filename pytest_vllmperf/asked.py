"""What the command line and the ini file asked of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Judging", "Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line and the ini file said, parsed once."""

    root: Path
    thresholds_path: Path
    report_directory: Path
    report_formats: tuple[str, ...]
    push_url: str | None
    engines: tuple[str, ...]
    workloads: tuple[str, ...]
    quick: bool
    record_only: bool
    require_gpu: bool
    share_cpu: bool
    workers: int
    reuse: bool
    judging: Judging
    resume: bool = False
    quality: str | None = None
    data: Path | None = None
    answers: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How often things are repeated, and what is done about doubt.

    Args:
        compare: Pairs of engines to compare, baseline first.
        attribute: Pairs of engines to take apart, base first.
        budget_s: Time an experiment may take; None for no bound.
        pairs: Launches of each at most.
        confirm: Whether what fails, or looks suspicious against history, is repeated with fresh launches.
        launches: Launches of each engine for limits on levels; None leaves it to the thresholds file.
        rounds: Likewise, rounds of each workload in one launch.
        inconclusive: ``warn`` or ``fail``; None leaves it to the thresholds file.
        calibrate: Whether limits are proposed and written instead of judged.
        force: Whether calibrating may loosen limits that are there.
    """

    compare: tuple[tuple[str, str], ...] = ()
    attribute: tuple[tuple[str, str], ...] = ()
    budget_s: float | None = None
    pairs: int = 10
    confirm: bool = False
    launches: int | None = None
    rounds: int | None = None
    inconclusive: str | None = None
    calibrate: bool = False
    force: bool = False
