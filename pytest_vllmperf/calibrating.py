"""Calibration: from what a run measured to limits in the thresholds file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllmperf.errors import ConfigError, ThresholdFileError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vllmperf.domain.calibration import LimitChange, Proposal
    from pytest_vllmperf.domain.section import Section
    from pytest_vllmperf.domain.thresholds import Limit, Match, Thresholds
    from pytest_vllmperf.sending import Evidence
    from pytest_vllmperf.session import Session

__all__ = ["Calibrated", "calibrate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What became of a calibration: its section of the report, the difference in the file, and what went wrong."""

    section: Section
    difference: str
    failure: str | None


def calibrate(run: Session, parts: Mapping[str, Evidence], *, broken_off: bool) -> Calibrated:
    """Propose a limit for everything the tests wanted checked, on each kind of hardware, and write what is new.

    The file is read again: what was edited during the run is neither lost nor loosened. Nothing is written after a run
    that was ``broken_off``, and nothing half: a failure leaves the file as it was, and is told.
    """
    from pytest_vllmperf.domain.calibration import changes
    from pytest_vllmperf.domain.calibration_section import calibration_section

    path, difference, failure = run.options.thresholds_path, "", None
    proposals: list[Proposal] = []
    try:
        proposals += _proposals(run, parts, _limits(run, path))
        wanted = changes(proposals)
        if broken_off:
            failure = f"the run was broken off: {path.name} stays as it is"
        elif wanted:
            difference = _write(run, path, wanted)
    except ThresholdFileError as error:
        failure = f"no limits were written: {'; '.join(error.problems)}"
    except ConfigError as error:
        failure = f"no limits were written: {path.name}: {error}"
    section = calibration_section(proposals, file=path.name, failure=failure)
    return Calibrated(section=section, difference=difference, failure=failure)


def _limits(run: Session, path: Path) -> Thresholds:
    from pytest_vllmperf.adapters.threshold_file import read_thresholds
    from pytest_vllmperf.domain.thresholds import Thresholds

    if not path.exists():
        return Thresholds(quality_tasks={}, path=None)
    return read_thresholds(path, engines=run.engines, workloads=run.known_workloads, tasks=run.tasks)


def _proposals(run: Session, parts: Mapping[str, Evidence], limits: Thresholds) -> list[Proposal]:
    from pytest_vllmperf.domain.calibration import BUILT_IN, propose
    from pytest_vllmperf.domain.thresholds import Subject

    found = []
    for hardware, part in parts.items():
        for verdict in part.verdicts:
            summary = part.summaries.get((verdict.engine, verdict.workload, ""))
            if summary is None or verdict.against is not None or verdict.metric in BUILT_IN:
                continue
            if verdict.engine not in run.engines or verdict.workload not in run.known_workloads:
                continue  # launched beside another, or made up by a test: no limit can name it
            subject = Subject(hardware=hardware, model=summary.model, engine=verdict.engine, workload=verdict.workload)
            force = run.options.judging.force
            found.append(propose(summary, verdict.metric, subject=subject, thresholds=limits, force=force))
    return found


def _write(run: Session, path: Path, wanted: Sequence[LimitChange]) -> str:
    """Write ``wanted`` and return the difference.

    Raises:
        ThresholdFileError: The file cannot be written, or would not say what was meant.
    """
    from pytest_vllmperf.adapters.threshold_edit import rewrite

    before = _written(_limits(run, path))
    vllm = run.environment.packages.get("vllm")
    with_vllm = f" of vLLM {vllm}" if vllm else ""
    heading = f"Proposed on {run.started_at:%Y-%m-%d} from {run.launch_budget} launches{with_vllm}."

    def check(new: Path) -> None:
        if _written(_limits(run, new)) != {**before, **_meant(before, wanted)}:
            why = f"{path.name}: editing would change other limits than the proposed ones; add them by hand"
            raise ThresholdFileError(str(path), [why])

    old, new = rewrite(path, wanted, heading=heading, check=check)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), path.name, path.name, n=2, lineterm="")
    return "\n".join(lines)


_Written = tuple["float | None", "float | None", "float | None", bool]


def _written(limits: Thresholds) -> dict[tuple[Match, str], _Written]:
    """Every limit of a file by its table's ``match`` and its metric."""

    def told(limit: Limit) -> _Written:
        return limit.maximum, limit.minimum, limit.tolerance, limit.required

    return {(table.match, name): told(limit) for table in limits.tables for name, limit in table.limits.items()}


def _meant(
    before: Mapping[tuple[Match, str], _Written], wanted: Sequence[LimitChange]
) -> dict[tuple[Match, str], _Written]:
    """What the changed limits must read as."""
    from pytest_vllmperf.domain.metrics import metric
    from pytest_vllmperf.domain.units import parse_quantity

    meant = {}
    for change in wanted:
        place = (change.match, change.metric)
        maximum, minimum, tolerance, required = before.get(place, (None, None, None, False))
        value = parse_quantity(change.value, unit=metric(change.metric).unit)
        maximum, minimum = (value, minimum) if change.key == "max" else (maximum, value)
        meant[place] = (maximum, minimum, tolerance, required)
    return meant
