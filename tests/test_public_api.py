import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_vllmperf

PACKAGE = Path(pytest_vllmperf.__file__).parent
HEAVY = ("httpx", "lm_eval", "numpy", "pynvml", "pytest_benchmark", "scipy", "psutil", "tomlkit", "uvloop")


@pytest.mark.parametrize("name", pytest_vllmperf.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    value = getattr(pytest_vllmperf, name)
    assert name in dir(pytest_vllmperf)
    if isinstance(value, type) or callable(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}("), "dataclasses invent such a docstring"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pytest_vllmperf.nonsense


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = f"import sys, pytest_vllmperf; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_the_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in ast.walk(guarded) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(pytest_vllmperf.__all__)
