"""Move history to or from a folder, a git branch, or an object store.

CI runners are thrown away; their history must not be. `vllmperf history pull WHERE` before a run brings what earlier
runners measured, `vllmperf history push WHERE` afterwards adds what this one did. Both only add, and each run once, so
that doing it again, or from several runners at the same time, loses and doubles nothing. WHERE is

  a folder                                 /mnt/share/vllm-history
  a branch of a git repository             git+origin#vllm-history, git+https://host/group/project.git#vllm-history
  anything fsspec opens                    s3://bucket/vllm (needs s3fs), gs://bucket/vllm (gcsfs), memory://, …
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_vllmperf.commands import Answer

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("action", choices=("push", "pull"), help="push: from here to WHERE; pull: from WHERE to here")
    parser.add_argument("where", metavar="WHERE", help="folder, git+REPOSITORY#BRANCH, or PROTOCOL://…")
    parser.add_argument(
        "--storage",
        type=Path,
        default=Path(".benchmarks"),
        metavar="DIR",
        help="the history here (default: .benchmarks)",
    )
    parser.add_argument(
        "--latest", type=int, metavar="N", help="pull only that many of the latest runs of each kind of hardware"
    )


def run(options: argparse.Namespace) -> Answer:
    """Move."""
    from pytest_vllmperf.adapters.history_remotes import open_remote
    from pytest_vllmperf.errors import HistoryError
    from pytest_vllmperf.transport import pull, push

    if options.latest is not None and (options.action == "push" or options.latest < 1):
        raise HistoryError(f"--latest {options.latest}: give a number above 0, and only with pull")
    storage: Path = options.directory / options.storage
    with open_remote(options.where, directory=options.directory) as remote:
        done = push(storage, remote) if options.action == "push" else pull(storage, remote, latest=options.latest)
    told, preposition, place = ("Pushed", "to", "there") if options.action == "push" else ("Pulled", "from", "here")
    text = f"{told} {len(done.moved)} runs {preposition} {options.where}; {done.known} were {place} already."
    return Answer(text="\n".join([text, *(f"! {warning}" for warning in done.warnings)]), data=done)
