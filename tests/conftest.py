"""Shared by all tests: pytester, and the fake engine as an EngineConfig's command."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from hypothesis import settings

settings.register_profile("vllmperf", deadline=None)  # on a busy machine one example may take long
settings.register_profile("ci", deadline=None, derandomize=True)  # a change passes or fails by itself, not by luck
settings.register_profile("fuzz", deadline=None, max_examples=4_000, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "vllmperf"))

pytest_plugins = ["pytester"]

for _ignored, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_ignored) is signal.SIG_IGN:  # under nohup, or behind "&": children would ignore it as well
        signal.signal(_ignored, _handler)

_ROW = re.compile(r"\b[LSCHVOXD]\d\d\b")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that name a row of the fault plan (docs/reliability.md) are found by it: ``-m fault_plan``."""
    for item in items:
        if _ROW.search(getattr(getattr(item, "obj", None), "__doc__", None) or ""):
            item.add_marker("fault_plan")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where rows of the fault plan alone are asked for, files without any need not be imported (8 s of CPU time)."""
    asked = config.getoption("markexpr").split()
    if asked[:1] != ["fault_plan"] or "or" in asked or not collection_path.match("test_*.py"):
        return None
    return True if _ROW.search(collection_path.read_text(encoding="utf-8")) is None else None


FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


@pytest.fixture(autouse=True)
def leases_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for an engine of another test, or of somebody else on this machine."""
    monkeypatch.setenv("VLLMPERF_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))


@pytest.fixture(scope="session", autouse=True)
def no_worker() -> Iterator[None]:
    """A pytest started by a test is a controller of its own, even where this one is a worker of pytest-xdist.

    And it keeps bytecode: without, each process of each test would compile all that it imports again.
    """
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
            patch.delenv(variable, raising=False)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A driver with two GPUs in the place of this machine's, with nothing remembered of an earlier one."""
    from pytest_vllmperf.adapters.gpu.nvml import forget

    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    forget()
    yield fake
    forget()


@pytest.fixture
def fake_command() -> tuple[str, ...]:
    """Launch command of a real subprocess that speaks vLLM's API on a scripted token schedule."""
    return (sys.executable, str(FAKE_ENGINE))
