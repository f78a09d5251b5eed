"""Quantities as people write them ("600 ms") and as values are kept (0.6, in the base unit)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from fractions import Fraction

from pytest_vllmperf.errors import UnitError

__all__ = ["MISSING", "format_quantity", "parse_quantity"]

MISSING = "–"
"""How a value that could not be had is shown."""

_UNITS: dict[str, dict[str, Fraction]] = {
    "s": {
        "ns": Fraction(1, 10**9),
        "us": Fraction(1, 10**6),
        "µs": Fraction(1, 10**6),
        "ms": Fraction(1, 10**3),
        "s": Fraction(1),
        "min": Fraction(60),
    },
    "B": {
        "B": Fraction(1),
        "KB": Fraction(10**3),
        "MB": Fraction(10**6),
        "GB": Fraction(10**9),
        "TB": Fraction(10**12),
        "KiB": Fraction(2**10),
        "MiB": Fraction(2**20),
        "GiB": Fraction(2**30),
        "TiB": Fraction(2**40),
    },
    "tok/s": {"tok/s": Fraction(1), "ktok/s": Fraction(1000)},
    "req/s": {"req/s": Fraction(1)},
    "J/tok": {"mJ/tok": Fraction(1, 1000), "J/tok": Fraction(1)},
    "W": {"W": Fraction(1), "kW": Fraction(1000)},
    "ratio": {"%": Fraction(1, 100)},
    "count": {},
    "nat": {"nat": Fraction(1)},
    "number": {},
}
"""What may be written for each base unit. Fractions, so that "80 %" is exactly 0.8."""

_SHOWN = {
    "s": ("ns", "µs", "ms", "s"),
    "B": ("B", "KiB", "MiB", "GiB", "TiB"),
    "ratio": ("%",),
    "count": (),
    "nat": (),
    "number": (),
}
"""Units a value is shown in, smallest first; others are shown in their base unit."""

_EXAMPLES = {
    "s": '"600 ms"',
    "B": '"12 GiB"',
    "tok/s": '"4800 tok/s"',
    "req/s": '"2.5 req/s"',
    "J/tok": '"0.5 J/tok"',
    "W": '"350 W"',
    "ratio": '"80 %" or 0.8',
    "count": "3",
    "nat": "0.005",
    "number": "1.5",
}
_BARE = ("ratio", "count", "nat", "number")
_QUANTITY = re.compile(
    r"""\s* (?P<sign>[+-]?)
        (?P<number> (?: [0-9]{1,3}(?:[ ][0-9]{3})+ | [0-9]{1,400} ) (?:\.[0-9]{1,400})? (?:[eE][+-]?[0-9]{1,3})? )
        \s* (?P<unit>[^\s0-9].*?)? \s*""",
    re.VERBOSE | re.DOTALL,
)


def parse_quantity(value: str | int | float, *, unit: str) -> float:
    """Read a quantity such as ``"600 ms"`` into the base unit ``unit``.

    A unit is required unless ``unit`` is ``ratio`` (``"80 %"`` or ``0.8``) or ``count`` (``3``). A
    base unit that is not built in accepts itself.

    Raises:
        UnitError: Not a quantity, negative, not finite, or in a unit that does not fit; the message
            says what was given, what fits, and an example.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UnitError(f"{value!r} is not a quantity; {_allowed(unit)}")
    number, suffix = _split(value, unit)
    factor = _factor(value, suffix, unit)
    try:
        amount = float(number * factor)
    except OverflowError:
        raise UnitError(f"{_quoted(value)} is too large; {_allowed(unit)}") from None
    if unit == "count" and amount != int(amount):
        raise UnitError(f"{_quoted(value)} is not a whole number; {_allowed(unit)}")
    if unit == "ratio" and not suffix and amount > 1:
        raise UnitError(f'{_quoted(value)} is more than 1, the whole; write "{value} %" if percent is meant')
    return amount


def _split(value: str | int | float, unit: str) -> tuple[Fraction, str]:
    """The number and the unit as written, which is empty for a bare number."""
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None:
            raise UnitError(f"{_quoted(value)} is not a quantity; {_allowed(unit)}")
        number = Fraction(match["number"].replace(" ", ""))
        suffix, negative = match["unit"] or "", match["sign"] == "-"
    else:
        if isinstance(value, int) and value.bit_length() > 1000:
            raise UnitError(f"the number is too large; {_allowed(unit)}")
        if not math.isfinite(value):
            raise UnitError(f"{value!r} is not finite; {_allowed(unit)}")
        number, suffix, negative = abs(Fraction(value)), "", value < 0
    if negative and number:
        raise UnitError(f"{_quoted(value)} is negative; {_allowed(unit)}")
    return number, suffix


def _factor(value: str | int | float, suffix: str, unit: str) -> Fraction:
    known = _known(unit)
    suffix = suffix.replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    if not suffix:
        if unit in _BARE:
            return Fraction(1)
        raise UnitError(f"{_quoted(value)} has no unit; {_allowed(unit)}")
    if suffix not in known:
        same = [name for name in known if name.casefold() == suffix.casefold()]
        near = same or difflib.get_close_matches(suffix, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnitError(f"{_quoted(value)}: unit {suffix!r} does not fit; {hint}{_allowed(unit)}")
    return known[suffix]


def _known(unit: str) -> Mapping[str, Fraction]:
    return _UNITS.get(unit, {unit: Fraction(1)})


def _allowed(unit: str) -> str:
    """What fits and an example, the second half of every message."""
    example = _EXAMPLES.get(unit, f'"1.5 {unit}"')
    if unit == "count":
        return f"allowed: a whole number without a unit, such as {example}"
    if unit == "number":
        return f"allowed: a number of 0 or more without a unit, such as {example}"
    units = ", ".join(u for u in _known(unit) if u != "us")
    bare = ", or a number from 0 to 1" if unit == "ratio" else ""
    return f"allowed: 0 or more in {units}{bare}, such as {example}"


def _quoted(value: str | int | float) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def format_quantity(value: float | None, *, unit: str, digits: int = 3) -> str:
    """Show ``value`` (in the base unit) for people: ``600 ms``, ``4 811 tok/s``, ``88.2 %``, ``2.51 GiB``.

    ``digits`` significant digits, but never fewer than the integer part has; trailing zeros are left
    out. None, and what is not finite, gives ``–``.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    shown = _SHOWN.get(unit, (unit,))
    if not shown:
        return _number(value, digits)
    if not value and unit != "ratio":
        return f"0 {unit}"
    step = 1024 if unit == "B" else 1000
    for name in shown[:-1]:
        scaled = value / float(_known(unit)[name])
        if abs(_rounded(scaled, digits)) < step:
            return f"{_number(scaled, digits)} {name}"
    return f"{_number(value / float(_known(unit)[shown[-1]]), digits)} {shown[-1]}"


def _rounded(value: float, digits: int) -> float:
    return round(value, _decimals(value, digits))


def _decimals(value: float, digits: int) -> int:
    """Decimal places that give ``digits`` significant digits; none for a long integer part."""
    if not value:
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return MISSING
    if value and not 1e-6 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}"
    value = _rounded(value, digits)
    text = f"{value:,.{_decimals(value, digits)}f}".replace(",", " ")
    return text.rstrip("0").rstrip(".") if "." in text else text
