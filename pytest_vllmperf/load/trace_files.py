"""Reads recorded arrivals: JSONL of one's own, and Mooncake-style traces."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_vllmperf.domain.prompts import TraceReplay
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError

__all__ = ["MOONCAKE_BLOCK", "TraceEntry", "read_trace"]

MOONCAKE_BLOCK = 512
"""Prompt tokens one hash id stands for (https://github.com/kvcache-ai/Mooncake, its traces' description)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEntry:
    """One recorded request: due ``at_ns`` after the first, its lengths, and the ids of its prompt's blocks, if any."""

    at_ns: int
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(workload: Workload) -> tuple[TraceEntry, ...] | None:
    """The first ``workload.requests`` entries of its trace, at its speed; None where there is none.

    Raises:
        WorkloadError: The file cannot be read, is not of its format, goes back in time, or holds fewer entries.
    """
    source = workload.prompts
    if not isinstance(source, TraceReplay):
        return None
    try:
        text = Path(source.path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"workload {workload.name!r}: {source.path} cannot be read: {error}") from error
    found = list(islice(_entries(source.path, text), workload.requests))
    if len(found) < workload.requests:
        raise WorkloadError(
            f"workload {workload.name!r}: {source.path} holds {len(found)} requests, and requests={workload.requests} "
            "asks for more: ask for fewer"
        )
    first_s = found[0][0]
    return tuple(
        TraceEntry(at_ns=round((at_s - first_s) / source.speed * 1e9), input_tokens=i, output_tokens=o, blocks=blocks)
        for at_s, i, o, blocks in found
    )


def _entries(path: str, text: str) -> Iterator[tuple[float, int, int, tuple[int, ...]]]:
    before_s = -math.inf
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise WorkloadError(f"{where}: not JSON ({error}): {line.strip()[:60]!r}") from error
        if not isinstance(entry, dict):
            raise WorkloadError(f"{where}: each line must be an object, not {line.strip()[:60]!r}")
        found = _entry(where, entry)
        if found[0] < before_s:
            raise WorkloadError(f"{where}: timestamp {entry['timestamp']} is before the one above it: sort the trace")
        before_s = found[0]
        yield found


def _entry(where: str, entry: dict[str, Any]) -> tuple[float, int, int, tuple[int, ...]]:
    mooncake = "input_length" in entry
    at = entry.get("timestamp")
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < math.inf:
        raise WorkloadError(f'{where}: "timestamp" must be a number, 0 or more, not {at!r}')
    names = ("input_length", "output_length") if mooncake else ("input_tokens", "output_tokens")
    lengths: list[int] = []
    for name in names:
        length = entry.get(name)
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise WorkloadError(f'{where}: "{name}" must be a whole number, 1 or more, not {length!r}')
        lengths.append(length)
    blocks = entry.get("hash_ids", [])
    if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
        raise WorkloadError(f'{where}: "hash_ids" must be a list of whole numbers, not {blocks!r}'[:300])
    needed = -(-lengths[0] // MOONCAKE_BLOCK)
    if blocks and len(blocks) != needed:
        raise WorkloadError(
            f'{where}: {lengths[0]} prompt tokens are {needed} blocks of {MOONCAKE_BLOCK}, and "hash_ids" names '
            f"{len(blocks)}"
        )
    return (at / 1000 if mooncake else float(at)), lengths[0], lengths[1], tuple(blocks)
