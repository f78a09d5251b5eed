"""An engine's flags against those its vLLM knows: what it would refuse after many seconds, or take and not do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["KnownFlag", "flag_problems"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFlag:
    """One flag of a parser, with all its names (``--enforce-eager``, ``--no-enforce-eager``)."""

    names: tuple[str, ...]
    takes_value: bool
    needs_value: bool
    choices: tuple[str, ...] | None


def flag_problems(args: Mapping[str, object], known: Iterable[KnownFlag]) -> tuple[str, ...]:
    """What is wrong with ``args`` (as in ``EngineConfig.args``), one sentence each; empty when nothing is."""
    by_name = {name.replace("_", "-"): flag for flag in known for name in flag.names}
    found = (_problem(flag, value, by_name) for flag, value in args.items() if value is not None)
    return tuple(problem for problem in found if problem)


def _problem(flag: str, value: object, by_name: Mapping[str, KnownFlag]) -> str | None:
    written = f"--no-{flag}" if value is False else f"--{flag}"
    known = by_name.get(written) or by_name.get(written.partition(".")[0] if "." in written else "")
    if known is None:
        return _unknown(flag, value, written, by_name)
    if "." in written:  # a key inside a JSON flag
        return None
    if value is True and known.needs_value:
        return f"{written} takes a value, and True gives it none: write the value"
    if not isinstance(value, bool) and not known.takes_value:
        return f"{written} is a switch and takes no value, so {value!r} would be read as the model: write True or False"
    plain = isinstance(value, (str, int)) and not isinstance(value, bool)
    if known.choices and plain and str(value) not in known.choices:
        return f"argument {written}: invalid choice: {str(value)!r} (choose from {', '.join(known.choices)})"
    return None


def _unknown(flag: str, value: object, written: str, by_name: Mapping[str, KnownFlag]) -> str:
    if value is False and f"--{flag}" in by_name:
        return f"--{flag} can only be given or left out: write None instead of False"
    whole = sorted(name for name in by_name if name.startswith(written))
    if whole:
        return f"{written} is an abbreviation, which vLLM takes until another flag begins alike: write {whole[0]}"
    shown = f"{written} {_shown(value)}" if not isinstance(value, bool) else written
    near = difflib.get_close_matches(written, by_name, n=2, cutoff=0.75)
    return f"unrecognized arguments: {shown}" + (f" (nearest: {', '.join(near)})" if near else "")


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)
