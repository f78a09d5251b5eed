import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(root: Path, config: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package found in ``root``."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--config", str(config), "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(autouse=True)
def _import_linter() -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed (dependency group lint)")


def test_imports_keep_to_the_layers_of_the_house() -> None:
    result = lint_imports(ROOT, ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_the_contracts_notice_an_import_that_points_upwards(tmp_path: Path) -> None:
    package = tmp_path / "pytest_vllmperf"
    for source in (ROOT / "pytest_vllmperf").rglob("*.py"):
        copy = package / source.relative_to(ROOT / "pytest_vllmperf")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    stats = package / "domain" / "stats.py"
    stats.write_text(
        stats.read_text(encoding="utf-8") + "\nimport pytest_vllmperf.domain.thresholds\n", encoding="utf-8"
    )
    result = lint_imports(tmp_path, ROOT / "pyproject.toml")
    assert result.returncode != 0
    assert "Domain builds upward from records to report BROKEN" in result.stdout


def test_no_two_test_files_share_a_name() -> None:
    """Test folders are no packages: pytest would take the second file for the first and collect nothing."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
