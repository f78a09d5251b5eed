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


_PARSER = """
import argparse, json
FlexibleArgumentParser = argparse.ArgumentParser
def make_arg_parser(parser):
{flags}
    return parser
"""


def foreign_vllm(folder: Path, *, version: str, distribution: str = "vllm", flags: str = "") -> str:
    """Make one in ``folder``, whose parser knows ``flags`` (as calls of ``parser.add_argument``); its interpreter."""
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
    (packages / "vllm" / "utils").mkdir()
    parser = _PARSER.format(flags="".join(f"    {line}\n" for line in flags.splitlines()))
    for module in ("vllm/utils/argparse_utils.py", "vllm/entrypoints/openai/cli_args.py"):
        (packages / module).write_text(parser)
    info = packages / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    return str(folder / "bin" / "python")
