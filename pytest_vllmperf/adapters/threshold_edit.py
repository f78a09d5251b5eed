"""Write limits into ``thresholds.toml``: comments, order and everything else in it stay as they are."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.calibration import LimitChange
from pytest_vllmperf.domain.thresholds import MATCH_KEYS, Match
from pytest_vllmperf.errors import ConfigError, ThresholdFileError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

__all__ = ["rewrite", "with_changes"]

_EMPTY = "version = 1\n"
_OURS = re.compile(r"# \S+( \S+)? (over \d+ launches(, sd .*)?|of \d+ questions)")
"""Comments written by an earlier calibration, which tell of its figures and not of today's; all others stay."""


def with_changes(text: str, changes: Sequence[LimitChange], *, heading: str) -> str:
    """``text`` of a thresholds file with ``changes`` made.

    A bound goes into the first table whose ``match`` names exactly the change's four keys: beside what stands there
    already, or after its last limit. What has no such table gets a new one at the end, under a comment ``heading``.
    Every other character stays.

    Raises:
        ConfigError: The file's tables cannot be told apart.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    text = (text or _EMPTY).replace("\r\n", "\n")
    parts = _parts(text)
    tables = [table for part in parts for table in part.tables]
    missing: dict[Match, list[LimitChange]] = {}
    for change in changes:
        table = _table_of(tables, change)
        if table is None:
            missing.setdefault(change.match, []).append(change)
        else:
            _set_bound(table, change)
    listed = parts[0].document.get("limit") if len(parts) == 1 else None
    if missing and listed is not None and not _is_array_of_tables(listed):  # limit = [{ … }], which ends there
        for match, of_one in missing.items():
            listed.append(_inline({"match": _match(match), **{c.metric: {c.key: c.value} for c in of_one}}))
        missing = {}
    edited = "".join(part.document.as_string() for part in parts)
    new = "".join(_new_table(match, of_one) for match, of_one in missing.items())
    if new:
        edited = f"{edited.rstrip(chr(10))}\n\n# {heading}\n{new.rstrip(chr(10))}\n"
    return edited.replace("\n", newline)


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of the file: one ``[[limit]]`` table, or what stands before, between and after them."""

    document: TOMLDocument

    @property
    def tables(self) -> list[Any]:
        return list(self.document.get("limit", []))


_TABLE = re.compile(r"""^[ \t]*\[\[[ \t]*(limit|"limit"|'limit')[ \t]*\]\]""", re.MULTILINE)
_HEADER = re.compile(r"^[ \t]*\[(?!\[?[ \t]*limit[ \t]*\.)", re.MULTILINE)


def _parts(text: str) -> list[_Part]:
    """The file cut at its ``[[limit]]`` tables: tomlkit would gather those that another table stands between."""
    from tomlkit import parse

    whole = parse(text)
    starts = [match.start() for match in _TABLE.finditer(text)]
    following = (_HEADER.search(text, text.index("]]", start)) for start in starts)
    ends = [header.start() if header else len(text) for header in following]
    cuts = sorted({0, *starts, *ends, len(text)})
    try:
        parts = [_Part(parse(text[a:b])) for a, b in pairwise(cuts)]
    except ValueError:  # tomlkit's errors are: a cut went through a string of several lines
        parts = []
    found = [table for part in parts for table in part.tables]
    if found != whole.get("limit", []) or "".join(part.document.as_string() for part in parts) != text:
        raise ConfigError("its [[limit]] tables cannot be told apart for editing; write each under its own [[limit]]")
    return parts


def _table_of(tables: Sequence[Any], change: LimitChange) -> Any | None:
    """The table for exactly this subject that has the metric, else the first one for it."""
    wanted = _match(change.match)
    mine = [table for table in tables if dict(table.get("match", {})) == wanted]
    return next((table for table in mine if change.metric in table), mine[0] if mine else None)


def _match(match: Match) -> dict[str, str]:
    return {key: value for key in MATCH_KEYS if (value := getattr(match, key)) is not None}


def _set_bound(table: Any, change: LimitChange) -> None:
    if change.metric in table:
        limit = table[change.metric]
        limit[change.key] = change.value
        if hasattr(limit, "trivia") and _OURS.fullmatch(limit.trivia.comment):
            limit.comment(change.comment)
            limit.trivia.comment_ws = "  "
        return
    limit = _inline({change.key: change.value})
    after = _take_trailing_trivia(table)
    if hasattr(limit, "comment") and _body(table):  # an inline table has no room for comments
        limit.comment(change.comment)
        limit.trivia.comment_ws = "  "
    table.append(_aligned_key(table, change.metric), limit)
    _body(table).extend(after)


def _inline(table: Mapping[str, object]) -> Any:
    """An inline table as people write them, with spaces inside the braces."""
    from tomlkit import item, key, parse

    def written(value: object) -> str:
        if not isinstance(value, Mapping):
            return item(value).as_string()
        return "{ " + ", ".join(f"{key(name).as_string()} = {written(v)}" for name, v in value.items()) + " }"

    return parse(f"x = {written(table)}\n")["x"]


def _aligned_key(table: Any, name: str) -> Any:
    """The key of a new limit, its equals sign below those of the table's other limits."""
    from tomlkit.items import SingleKey

    others = [key for key, _ in _body(table) if key is not None and key.as_string() != "match"]
    width = len(others[-1].as_string()) + len(others[-1].sep) if others else 0
    return SingleKey(name, sep=f"{' ' * max(1, width - len(name) - 2)}= ")


def _body(table: Any) -> list[Any]:
    return table.value.body if hasattr(table.value, "body") else []


def _take_trailing_trivia(table: Any) -> list[Any]:
    """Remove the blank lines and comments after a table's last key, which mostly belong to what follows it."""
    body = _body(table)
    end = len(body)
    while end and body[end - 1][0] is None:
        end -= 1
    taken = body[end:]
    del body[end:]
    return taken


def _is_array_of_tables(listed: object) -> bool:
    from tomlkit.items import AoT

    return isinstance(listed, AoT)


def _new_table(match: Match, changes: Sequence[LimitChange]) -> str:
    from tomlkit import item, key

    written = ", ".join(f"{name} = {item(value).as_string()}" for name, value in _match(match).items())
    names = {change.metric: key(change.metric).as_string() for change in changes}
    width = max(map(len, names.values()))
    lines = [f"{names[c.metric]:{width}} = {{ {c.key} = {item(c.value).as_string()} }}  # {c.comment}" for c in changes]
    return "\n".join(["[[limit]]", f"match = {{ {written} }}", *lines, "", ""])


def rewrite(
    path: Path, changes: Sequence[LimitChange], *, heading: str, check: Callable[[Path], None]
) -> tuple[str, str]:
    """Make ``changes`` in the file, made where there is none, and return its text before and after.

    The new text is written beside the file, given to ``check``, which may raise, and put in the file's place at once.

    Raises:
        ThresholdFileError: The file cannot be read or written; it is as it was before.
    """
    path = path.resolve()  # a link stays a link
    try:
        before = path.read_bytes().decode() if path.exists() else ""
        bom = "\ufeff" if before.startswith("\ufeff") else ""
        after = bom + with_changes(before.removeprefix(bom), changes, heading=heading)
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        new = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(after.encode())
            new.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o644)
            check(new)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        why = f"{path.name}: cannot be written: {error.strerror}; nothing was changed"
        raise ThresholdFileError(str(path), [why]) from error
    return before, after
