"""A virtual environment with a vLLM of its own: the fake engine under vLLM's module names. No pip, no download."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

_SERVE = """
import runpy, sys
arguments = sys.argv[1:]
if arguments[:1] == ["serve"]:
    arguments = ["--model", *arguments[1:]]
sys.path.insert(0, {folder!r})
sys.argv = [{engine!r}, *arguments, "--fake-version", {version!r}]
print("INFO served by " + __spec__.name, file=sys.stderr, flush=True)
runpy.run_path({engine!r}, run_name="__main__")
"""


def foreign_vllm(folder: Path, *, version: str, distribution: str = "vllm") -> str:
    """Make one in ``folder``; its interpreter."""
    venv.create(folder, symlinks=True)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / python / "site-packages"
    engine = Path(__file__).with_name("fake_engine.py")
    for module in ("vllm/entrypoints/cli/main.py", "vllm/entrypoints/openai/api_server.py"):
        path = packages / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_SERVE.format(folder=str(engine.parent), engine=str(engine), version=version))
        for parent in path.relative_to(packages).parents:
            if parent.name:
                (packages / parent / "__init__.py").touch()
    info = packages / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    return str(folder / "bin" / "python")
