"""Find the first bad one of a row of vLLM environments or engines.

An environment is a virtual environment's folder (or its Python), whose vLLM then serves the engine --engine; or the
name of an engine that conftest.py declares. Between --good and --bad stand those given as ENV, in order; where none is
given, the folders beside both that sort between them (vllm-0.9 before vllm-0.10), or the engines declared between them.
Each step launches a candidate and the good end alternately, as --vllmperf-compare does. Exit code 0 when the first bad
one is known, 11 when it is not.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.commands import Answer, columns, tell

if TYPE_CHECKING:
    from pytest_vllmperf.bisection import BisectPlan
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.experiment import Asked
    from pytest_vllmperf.pool import EnginePool
    from pytest_vllmperf.session import Session

__all__ = ["add_arguments", "row", "run"]

_UNKNOWN = 11
_METRICS = ("output_throughput", "ttft_mean", "tpot_mean")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("between", nargs="*", metavar="ENV", help="what stands between good and bad, in order")
    parser.add_argument("--good", required=True, metavar="ENV", help="known to be good: everything is compared with it")
    parser.add_argument("--bad", required=True, metavar="ENV", help="known to be bad")
    parser.add_argument("--engine", metavar="NAME", help="what environments serve (default: the first engine declared)")
    parser.add_argument("--workload", default="burst", metavar="NAME", help="what is measured (default: burst)")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="what decides (repeatable; default: output_throughput, ttft_mean and tpot_mean)",
    )
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="launches of each side in a step, at most")
    parser.add_argument("--quick", action="store_true", help="send a fifth of the workload's requests")
    parser.add_argument(
        "--share-cpu", action="store_true", help="do not wait for engines of other runs that use this machine's CPU"
    )


def run(options: argparse.Namespace) -> Answer:
    """Search, then tell."""
    from pytest_vllmperf.bisection import bisect
    from pytest_vllmperf.experiment import PoolLauncher, measured_on
    from pytest_vllmperf.standalone import session_at

    arguments = ["--vllmperf-share-cpu"] * options.share_cpu
    session = session_at(options.directory, arguments)
    plan = _plan(session, options)
    pool = _pool(session)
    measure = partial(measured_on, quick=options.quick, progress=tell)
    launcher = PoolLauncher(
        pool=pool, measure_one=lambda handle, asked: measure(handle, asked, gpu_uuids=pool.gpu_uuids(handle.name))
    )
    try:
        found = bisect(plan, launcher, progress=tell)
    finally:
        pool.close()
    rows = [(t.engine, t.against, t.step.value, str(t.launches), "; ".join(t.reasons)) for t in found.trials]
    table = columns(("environment", "against", "is", "launches", "because"), rows, right=("launches",))
    return Answer(
        text=f"{table}\n\n{found.sentence}", data=found, exit_code=0 if found.first_bad is not None else _UNKNOWN
    )


def _plan(session: Session, options: argparse.Namespace) -> BisectPlan:
    from pytest_vllmperf.bisection import BisectPlan
    from pytest_vllmperf.domain.comparison import COMPARED
    from pytest_vllmperf.domain.thresholds import Subject, resolve_tolerance
    from pytest_vllmperf.errors import EngineConfigError

    names = list(session.engines)
    served = options.engine or names[0]
    if served not in session.engines:
        raise EngineConfigError(f"--engine {served}: no such engine; declared: {', '.join(names)}")
    engines = row(options.good, options.bad, options.between, engines=session.engines, served=session.engines[served])
    quality = options.workload in session.tasks
    asked: Asked = session.quality_task(options.workload) if quality else session.workload(options.workload)
    subject = Subject(
        hardware=session.environment.hardware,
        model=engines[-1].model_name,
        engine=served,
        workload=asked.name,
    )
    metrics = options.metric or (COMPARED["quality"] if quality else _METRICS)
    limits = tuple(resolve_tolerance(session.thresholds, subject, metric) for metric in metrics)
    return BisectPlan(engines=engines, asked=(asked,), limits={asked.name: limits}, pairs=options.pairs)


def row(
    good: str, bad: str, between: Sequence[str], *, engines: Mapping[str, EngineConfig], served: EngineConfig
) -> tuple[EngineConfig, ...]:
    """The engines to search, good one first.

    Raises:
        EngineConfigError: An environment is neither an engine's name nor a folder with a Python, or good and bad are
            the same, or stand in no order.
    """
    from pytest_vllmperf.errors import EngineConfigError

    names = [good, *(between or _between(good, bad, list(engines))), bad]
    if len(set(names)) < len(names):
        raise EngineConfigError(f"the row {', '.join(names)} names something twice; give each environment once")
    return tuple(_engine(name, engines, served) for name in names)


def _between(good: str, bad: str, declared: list[str]) -> list[str]:
    from pytest_vllmperf.errors import EngineConfigError

    if good in declared and bad in declared:
        names = declared
    elif Path(good).is_dir() and Path(good).resolve().parent == Path(bad).resolve().parent:
        beside = [p for p in Path(good).parent.iterdir() if (p / "bin" / "python").exists()]
        names = [str(p) for p in sorted(beside, key=lambda p: _natural(p.name))]
        good, bad = (next((n for n in names if Path(n).resolve() == Path(e).resolve()), e) for e in (good, bad))
    else:
        return []
    if good not in names or bad not in names or names.index(good) >= names.index(bad):
        raise EngineConfigError(f"--good {good} does not stand before --bad {bad} in: {', '.join(names)}")
    return names[names.index(good) + 1 : names.index(bad)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by their size: 0.9 before 0.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _engine(name: str, known: Mapping[str, EngineConfig], served: EngineConfig) -> EngineConfig:
    from pytest_vllmperf.errors import EngineConfigError

    if name in known:
        return known[name]
    path = Path(name).expanduser()
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.is_file():
        raise EngineConfigError(
            f"environment {name!r} is no engine of {', '.join(known)}, and there is no {python}: name an engine, or "
            "the folder of a virtual environment with vLLM"
        )
    called = path.name if path.is_dir() else path.parent.parent.name
    legal = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{served.name}.{called}")
    return replace(served, name=legal, python=str(python.absolute()), command=None)


def _pool(session: Session) -> EnginePool:
    from pytest_vllmperf.adapters.leases import HostLeases, lease_directory
    from pytest_vllmperf.pool import EnginePool

    options = session.options
    return EnginePool(
        engines=session.engines,
        environment=session.environment,
        directory=options.report_directory.parent / "bisect",
        progress=tell,
        leases=HostLeases(lease_directory(), share_cpu=options.share_cpu, project=str(options.root)),
    )
