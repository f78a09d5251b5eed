import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.units import MISSING, format_quantity, parse_quantity
from pytest_vllmperf.errors import UnitError


@pytest.mark.parametrize(
    ("written", "unit", "value"),
    [
        ("600 ms", "s", 0.6),
        ("600ms", "s", 0.6),
        ("  1.5 s ", "s", 1.5),
        ("2 min", "s", 120.0),
        ("250 us", "s", 250e-6),
        ("250 µs", "s", 250e-6),
        ("250 \N{GREEK SMALL LETTER MU}s", "s", 250e-6),
        ("7 ns", "s", 7e-9),
        ("1e3 ms", "s", 1.0),
        ("124 GiB", "B", 124 * 2**30),
        ("12 GB", "B", 12e9),
        ("2 TiB", "B", 2 * 2**40),
        ("3 MiB", "B", 3 * 2**20),
        ("3 KiB", "B", 3 * 2**10),
        ("3 KB", "B", 3e3),
        ("3 TB", "B", 3e12),
        ("10 968 MB", "B", 10_968e6),
        ("4 811 tok/s", "tok/s", 4811.0),
        ("4.811 ktok/s", "tok/s", 4811.0),
        ("2.5 req/s", "req/s", 2.5),
        ("80 %", "ratio", 0.8),
        ("80%", "ratio", 0.8),
        ("0.8", "ratio", 0.8),
        (0.8, "ratio", 0.8),
        (1, "ratio", 1.0),
        ("150 %", "ratio", 1.5),
        (3, "count", 3.0),
        (0, "count", 0.0),
        ("12", "count", 12.0),
        ("0.5 J/tok", "J/tok", 0.5),
        ("350 W", "W", 350.0),
        ("3 furlong", "furlong", 3.0),
    ],
)
def test_a_quantity_is_read_into_its_base_unit(written: str | float, unit: str, value: float) -> None:
    assert parse_quantity(written, unit=unit) == value


@pytest.mark.parametrize(
    ("written", "unit", "parts"),
    [
        ("600", "s", ['"600"', "has no unit", "ns, µs, ms, s, min", '"600 ms"']),
        (600, "s", ["600 has no unit", "ms"]),
        ("6 tok/s", "s", ["'tok/s' does not fit", "ms"]),
        ("3 mib", "B", ["'mib' does not fit", "did you mean MiB?"]),
        ("5 S", "s", ["'S' does not fit"]),
        ("3 apples", "count", ["'apples' does not fit", "without a unit"]),
        (2.5, "count", ["2.5 is not a whole number"]),
        (80, "ratio", ["80 is more than 1", '"80 %"']),
        ("-3 s", "s", ["is negative", "0 or more"]),
        (-0.1, "ratio", ["is negative"]),
        (math.nan, "ratio", ["not finite"]),
        (math.inf, "count", ["not finite"]),
        ("nan s", "s", ["not a quantity"]),
        ("inf s", "s", ["not a quantity"]),
        ("1e400 s", "s", ["too large"]),
        (10**400, "count", ["too large"]),
        pytest.param(10**6000, "ratio", ["too large"], id="more digits than Python prints"),
        ("", "s", ["not a quantity"]),
        ("ms", "s", ["not a quantity"]),
        ("12 34 s", "s", ["not a quantity"]),
        ("\N{ARABIC-INDIC DIGIT THREE} s", "s", ["not a quantity"]),
        (True, "count", ["True is not a quantity"]),
        (None, "s", ["None is not a quantity"]),
        ([1], "s", ["[1] is not a quantity"]),
    ],
)
def test_what_is_no_quantity_is_told_with_what_fits(written: object, unit: str, parts: list[str]) -> None:
    with pytest.raises(UnitError) as caught:
        parse_quantity(written, unit=unit)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.6, "s", "600 ms"),
        (0.2204, "s", "220 ms"),
        (10.979, "s", "11 s"),
        (148.0, "s", "148 s"),
        (1234.0, "s", "1 234 s"),
        (0.9996, "s", "1 s"),
        (0.00489, "s", "4.89 ms"),
        (8.1e-6, "s", "8.1 µs"),
        (0.0, "s", "0 s"),
        (-0.0251, "s", "-25.1 ms"),
        (4811.0, "tok/s", "4 811 tok/s"),
        (76.2, "tok/s", "76.2 tok/s"),
        (1_234_567.0, "tok/s", "1 234 567 tok/s"),
        (0.882, "ratio", "88.2 %"),
        (0.8, "ratio", "80 %"),
        (0.0, "ratio", "0 %"),
        (2.51 * 2**30, "B", "2.51 GiB"),
        (1023.99 * 2**20, "B", "1 GiB"),
        (5000 * 2**40, "B", "5 000 TiB"),
        (0, "B", "0 B"),
        (3, "count", "3"),
        (1234, "count", "1 234"),
        (None, "s", MISSING),
        (math.nan, "s", MISSING),
        (math.inf, "B", MISSING),
    ],
)
def test_a_value_is_shown_the_way_people_read_it(value: float | None, unit: str, shown: str) -> None:
    assert format_quantity(value, unit=unit) == shown


def test_more_digits_tell_close_values_apart() -> None:
    assert format_quantity(0.3004, unit="s", digits=4) == "300.4 ms"


UNITS = st.sampled_from(["s", "B", "tok/s", "req/s", "ratio", "J/tok", "W", "furlong"])
VALUES = st.one_of(
    st.floats(min_value=0, max_value=1e18, allow_subnormal=False), st.integers(0, 10**12).map(float), st.just(0.0)
)


@given(VALUES, UNITS)
def test_what_is_shown_reads_back_within_rounding(value: float, unit: str) -> None:
    shown = format_quantity(value, unit=unit)
    assert parse_quantity(shown, unit=unit) == pytest.approx(value, rel=0.005001, abs=0)


@given(st.integers(0, 10**9))
def test_a_count_reads_back_exactly(value: int) -> None:
    assert parse_quantity(format_quantity(value, unit="count"), unit="count") == value


@given(VALUES, UNITS)
def test_all_digits_read_back_the_value_itself(value: float, unit: str) -> None:
    shown = format_quantity(value, unit=unit, digits=17)
    assert parse_quantity(shown, unit=unit) == pytest.approx(value, rel=1e-12, abs=0)


@given(st.floats(0, 1e6), st.floats(0, 1e6), UNITS)
def test_reading_keeps_the_order_of_what_is_shown(first: float, second: float, unit: str) -> None:
    low, high = sorted((first, second))
    shown_low, shown_high = (parse_quantity(format_quantity(v, unit=unit), unit=unit) for v in (low, high))
    assert shown_low <= shown_high


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none()), UNITS | st.just("count"))
def test_whatever_is_read_is_finite_and_not_negative_and_all_else_is_a_unit_error(written: object, unit: str) -> None:
    try:
        value = parse_quantity(written, unit=unit)  # type: ignore[arg-type]
    except UnitError:
        return
    assert math.isfinite(value)
    assert value >= 0
