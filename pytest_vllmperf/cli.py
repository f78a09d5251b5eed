"""The ``vllmperf`` command: one frame for every subcommand of :mod:`pytest_vllmperf.commands`.

A subcommand is a module of that package and nothing else: it is found by its file, and imported only when it is
asked for (all are, lightly, for ``vllmperf --help``). The frame gives each the same help, ``--json``,
``--directory``, errors as one line on stderr with exit code 2, and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllmperf import __version__, commands
from pytest_vllmperf.errors import VllmPerfError

if TYPE_CHECKING:
    from pytest_vllmperf.commands import Command

__all__ = ["command_names", "main"]

_USAGE_ERROR = 2
_INTERRUPTED = 130
_SEALED_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; ``arguments`` are those of the process by default."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser(given).parse_args(given)
        return _run(options)
    except BrokenPipeError:  # the reader, such as `head`, has enough: Python must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SEALED_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (VllmPerfError, OSError) as error:
        with contextlib.suppress(BrokenPipeError):
            print(f"vllmperf: {_line(error)}", file=sys.stderr)  # noqa: T201 - a command speaks by printing
        return _USAGE_ERROR


def command_names() -> tuple[str, ...]:
    """Every subcommand there is, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(commands.__path__))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


def _run(options: argparse.Namespace) -> int:
    if not options.directory.is_dir():
        raise NotADirectoryError(f"--directory {options.directory}: no such folder")
    answer = options.run(options)
    if options.json:
        from pytest_vllmperf.domain.report import plain

        text = json.dumps(plain(answer.data), indent=2, ensure_ascii=False)
    else:
        text = answer.text
    if text:
        print(text, flush=True)  # noqa: T201 - a command speaks by printing
    return int(answer.exit_code)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser with the subcommand asked for, or with all of them where none is."""
    parser = argparse.ArgumentParser(
        prog="vllmperf",
        description="Look at, compare and act on what vLLM performance suites measured.",
        epilog="vllmperf COMMAND --help says more about each. Exit codes: 0 fine, 2 wrong usage or input; "
        "a command that judges says so and uses those of the suites.",
    )
    parser.add_argument("--version", action="version", version=f"vllmperf {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    names = command_names()
    asked = next((a for a in arguments if not a.startswith("-")), None)
    for name in (asked,) if asked in names else names:
        _add(subparsers, str(name))
    return parser


def _add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    command: Command = importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")
    summary, _, rest = (command.__doc__ or "").strip().partition("\n")
    parser = subparsers.add_parser(
        name,
        help=summary.rstrip("."),
        description=f"{summary}\n{rest}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    shared = parser.add_argument_group("of every command")
    shared.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    shared.add_argument(
        "-C",
        "--directory",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the project's root directory, with conftest.py and thresholds.toml (default: here)",
    )
    parser.set_defaults(run=command.run)


def _line(error: BaseException) -> str:
    """The message; several lines only where the error lists several problems."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
