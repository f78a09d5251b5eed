"""Host memory of an engine: the proportional set size of its whole process tree."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path

__all__ = ["is_running", "process_tree", "process_tree_pss_bytes"]

_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


def process_tree_pss_bytes(pid: int, members: Collection[int] | None = None) -> int | None:
    """PSS in bytes of ``pid``, its descendants and its process group (or of these ``members``), summed.

    PSS and not RSS: pages shared by several processes count once, where a sum of RSS counts them for each
    (390 MiB too much for a small vLLM server). None when any of them could not be read: a partial sum would
    pass limits it should not.
    """
    total = 0
    for member in process_tree(pid) if members is None else members:
        try:
            found = _PSS.search(Path(f"/proc/{member}/smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        except OSError:
            return None
        # A zombie's file is there and empty: it owns no memory.
        total += int(found[1]) * 1024 if found else 0
    return total or None


def is_running(pid: int) -> bool:
    """Whether there is such a process, and more of it than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in (b"Z", b"X")


def process_tree(pid: int) -> set[int]:
    """``pid``, its descendants and its process group."""
    import psutil

    members = {pid}
    with contextlib.suppress(psutil.Error):  # when the leader is gone, its group may still have members
        members |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    return members | {other for other in psutil.pids() if _group_of(other) == pid}


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:  # it ended meanwhile
        return None
