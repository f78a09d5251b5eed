"""Shifts of level somebody has accepted: a small TOML file beside ``thresholds.toml``, for version control."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.series import Shift
from pytest_vllmperf.errors import HistoryError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILE", "accept", "read_shifts"]

FILE = "accepted-shifts.toml"
_KEYS = ("engine", "workload", "metric", "since", "reason")


def read_shifts(path: Path) -> tuple[Shift, ...]:
    """Read the file; a missing one holds none.

    Raises:
        HistoryError: It is not TOML, or an entry lacks something; the message names it.
    """
    return tuple(_shift(path, number, entry) for number, entry in enumerate(_document(path).get("accepted", []), 1))


def accept(path: Path, shift: Shift) -> None:
    """Append one shift; whatever else stands in the file stays as it is.

    Raises:
        HistoryError: The file is there and cannot be read.
    """
    import tomlkit

    read_shifts(path)  # complain before anything is written
    document = _document(path)
    if not path.exists():
        document.add(tomlkit.comment("Shifts of level that are meant to be: runs before them are not compared with."))
    table = tomlkit.table()
    for key in _KEYS:
        table.add(key, getattr(shift, key))
    table.add("recorded", dt.datetime.now(dt.timezone.utc).date().isoformat())
    entries = document.get("accepted")
    if entries is None:
        entries = tomlkit.aot()
        document.add("accepted", entries)
    entries.append(table)
    path.write_text(tomlkit.dumps(document), encoding="utf-8")


def _document(path: Path) -> Any:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if not path.exists():
        return tomlkit.document()
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise HistoryError(f"{path}: is not TOML: {error}; mend it, or remove it to accept nothing") from None


def _shift(path: Path, number: int, entry: Any) -> Shift:
    lacking = [key for key in _KEYS if not isinstance(entry.get(key), str)]
    if lacking:
        raise HistoryError(f"{path}: accepted no. {number} lacks {', '.join(lacking)}, each a string")
    return Shift(**{key: str(entry[key]) for key in _KEYS})
