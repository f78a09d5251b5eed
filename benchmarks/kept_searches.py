"""Searches of many seeds, several beside each other, kept in a file so that a later call goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

__all__ = ["kept_searches"]

Search = Callable[[int], "dict[str, Any] | None"]
"""Makes the search of one seed, with the seed in it; None where the time was up before it began."""


def kept_searches(
    search: Search, seeds: Sequence[int], *, jobs: int, log: Path | None
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every search there is, as it comes, and whether it was made now.

    Args:
        search: Runs in a process of its own, so it must be picklable.
        seeds: Those wanted.
        jobs: Searches beside each other.
        log: Where each is kept, one JSON document a line; only those it lacks are made. None to keep none.
    """
    lines = log.read_text(encoding="utf-8").splitlines() if log is not None and log.exists() else []
    kept = {run["seed"]: run for run in map(json.loads, lines)}
    yield from ((kept[seed], False) for seed in seeds if seed in kept)
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(search, seed) for seed in seeds if seed not in kept]):
            if (run := future.result()) is not None:
                if log is not None:
                    with log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(run) + "\n")
                yield run, True
