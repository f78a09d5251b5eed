"""Write a starter: conftest.py, thresholds.toml and suites/ for this project.

Files that are there already are left as they are. Afterwards `pytest suites/` launches both engines of conftest.py and
measures them; `pytest suites/ --vllmperf-calibrate` proposes limits from what it sees, and writes them.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf.commands import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.abc import Traversable

__all__ = ["add_arguments", "run"]

_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("--model", default=_MODEL, help=f"a hub id or a path (default: {_MODEL})")


def run(options: argparse.Namespace) -> Answer:
    """Write what is missing."""
    root: Path = options.directory
    written, kept = [], []
    for name, content in _files(resources.files("pytest_vllmperf") / "starter"):
        path = root / name
        if path.exists():
            kept.append(name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.replace("@MODEL@", _quoted(options.model)), encoding="utf-8")
        written.append(name)
    lines = [*(f"wrote  {name}" for name in written), *(f"kept   {name}: it was there already" for name in kept)]
    lines += ["", "Next: name your engines in conftest.py, then", "  pytest suites/ --vllmperf-calibrate"]
    return Answer(text="\n".join(lines), data={"written": written, "kept": kept})


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and content of each file of the starter; ``.txt`` keeps pytest from collecting them here."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith((".txt", ".toml")):
            yield prefix + entry.name.removesuffix(".txt"), entry.read_text(encoding="utf-8")


def _quoted(model: str) -> str:
    """The model inside a Python string in double quotes."""
    return model.replace("\\", "\\\\").replace('"', '\\"')
