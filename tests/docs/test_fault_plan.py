"""Every row of the fault plan is a test and in docs/reliability.md, or is named there as not covered."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = {"L": 18, "S": 16, "C": 7, "H": 27, "V": 11, "O": 6, "X": 9, "D": 4}
PLAN = {f"{kind}{number:02}" for kind, count in ROWS.items() for number in range(1, count + 1)}
ROW = re.compile(r"\b[LSCHVOXD]\d\d\b")
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def rows_of_tests():
    """Rows by the docstrings of tests."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
                found |= set(ROW.findall(ast.get_docstring(node) or ""))
    return found


def rows_of_tables():
    """Rows by the first cell of the page's tables, with the rest of their line."""
    lines = [line.split("|", 2) for line in PAGE.splitlines() if line.startswith("|")]
    return {row: rest for _, first, rest in lines for row in ROW.findall(first)}


def not_covered():
    return set(ROW.findall(PAGE.rpartition("## Not covered")[2]))


def test_every_row_is_in_a_table_or_named_as_not_covered():
    assert PLAN - set(rows_of_tables()) - not_covered() == set()
    assert set(rows_of_tables()) - PLAN == set()


def test_every_row_of_a_table_is_a_test():
    """Those about streams stand in tables of test_stream_truth, by what is wrong with the stream."""
    told = {row for row, rest in rows_of_tables().items() if row.startswith("H") and "`test_" in rest}
    assert set(rows_of_tables()) - rows_of_tests() - told - not_covered() == set()
