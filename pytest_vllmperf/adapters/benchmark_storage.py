"""Where pytest-benchmark keeps runs, and what it compares with: by hardware, one writer at a time.

It decides both while it is configured, when nobody may look for a GPU yet; so its session is corrected afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "folder_of",
    "locked",
    "next_number",
    "postpone_comparison",
    "resume_comparison",
    "save_run",
    "store_by_hardware",
]

_NUMBERED = re.compile(r"(\d{4,})_.*\.json")


def postpone_comparison(config: Any) -> str | bool | None:
    """Take ``--benchmark-compare`` away before pytest-benchmark acts on it, and return what it was given.

    Call it in a ``pytest_configure`` that is not trylast. What to compare with depends on the hardware, which
    is not looked at before tests are collected; :func:`resume_comparison` gives it back.
    """
    given: str | bool | None = getattr(config.option, "benchmark_compare", None)
    if given:
        config.option.benchmark_compare = None
    return given


def resume_comparison(config: Any, given: str | bool | None) -> None:
    """Load what ``--benchmark-compare`` asked for, from where :func:`store_by_hardware` points by now."""
    session = getattr(config, "_benchmarksession", None)
    if given and session is not None and not session.compare:
        config.option.benchmark_compare = session.compare = given
        session.handle_loading()


def store_by_hardware(config: Any, hardware: str) -> list[str]:
    """Keep this run in a folder named after the hardware; two runs that end at once save one after the other.

    pytest-benchmark's own folders tell operating systems and Python versions apart, but no GPUs. What was measured
    on other hardware, by workers on other machines, goes into that hardware's folder. What could not be saved (a full
    disk) is in the list returned, a sentence each, once pytest-benchmark has finished: it must not undo the run's end.
    """
    unsaved: list[str] = []
    session = getattr(config, "_benchmarksession", None)
    if session is None or not isinstance(getattr(session.storage, "path", None), Path):
        return unsaved  # a server such as Elasticsearch keeps machines apart, and writers too
    session.machine_id = session.storage.default_machine_id = folder_of(hardware)

    def save(output_json: Mapping[str, Any], name: str) -> None:
        for there, part in _by_hardware(output_json, hardware):
            try:
                path = save_run(session.storage.path, part, hardware=there, name=name)
            except OSError as error:
                unsaved.append(f"history was not saved: {error}")
                continue
            session.storage.logger.info(f"Saved benchmark data in: {path}")

    session.storage.save = save
    return unsaved


def folder_of(hardware: str) -> str:
    """The name of the folder for runs on ``hardware``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", hardware).strip("-.")


def save_run(storage: Path, content: Mapping[str, Any], *, hardware: str, name: str) -> Path:
    """Write one run under the next free number, whole or not at all; its path.

    Raises:
        OSError: It cannot be written.
    """
    folder = storage / folder_of(hardware)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, default=str)
    with locked(storage):
        path = folder / f"{next_number(folder):04}_{name}.json"
        draft = folder / f".{path.name}.{os.getpid()}"
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def locked(storage: Path) -> Iterator[None]:
    """Be the only writer of a storage folder; whoever else asks waits."""
    with (storage / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def next_number(folder: Path) -> int:
    """The number after the highest in ``folder``. Look while the storage is :func:`locked`."""
    found = (_NUMBERED.fullmatch(name) for name in os.listdir(folder))  # noqa: PTH208 - thousands of files
    return max((int(match[1]) for match in found if match), default=0) + 1


def _by_hardware(output_json: Mapping[str, Any], here: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file of each kind of hardware. Ordinary benchmarks ran here, and nobody else's machine is described."""
    parts: dict[str, list[Any]] = {}
    benchmarks: Sequence[Any] = output_json["benchmarks"]
    for bench in benchmarks:
        parts.setdefault((bench.get("extra_info") or {}).get("hardware", here), []).append(bench)
    for hardware, part in parts.items() or [(here, [])]:
        content = {**output_json, "benchmarks": part}
        if hardware != here:
            nodes = {node for bench in part for node in (bench["extra_info"].get("hosts") or {}).values()}
            content["machine_info"] = {"node": ", ".join(sorted(filter(None, nodes)))}
        yield hardware, content
