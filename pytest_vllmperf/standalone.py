"""The matrix of a project without running any of its tests: for commands that act on its engines."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_vllmperf.errors import ConfigError
from pytest_vllmperf.stash import SESSION

if TYPE_CHECKING:
    from pytest_vllmperf.session import Session

__all__ = ["session_at"]


class _Taker:
    """A plugin that takes the session as soon as everything is configured, and collects nothing."""

    def __init__(self) -> None:
        self.session: Session | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        self.session = config.stash.get(SESSION, None)

    def pytest_collection(self) -> bool:
        return True


def session_at(directory: Path, arguments: Sequence[str] = ()) -> Session:
    """What ``pytest`` would know when started in ``directory`` with ``arguments``: engines, workloads, options.

    The project's ``conftest.py`` and plugins are imported as pytest imports them.

    Raises:
        ConfigError: pytest cannot be configured there (its own message is told), or no engines are declared.
    """
    taker, said = _Taker(), io.StringIO()
    with _inside(directory), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *arguments], plugins=[taker])
    if taker.session is not None:
        return taker.session
    if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise ConfigError(
            f"{directory.resolve()}: no engines are declared here; name the folder whose conftest.py has the hook "
            "pytest_vllmperf_engines with -C DIR"
        )
    raise ConfigError(f"{directory.resolve()}: pytest cannot start here:\n{said.getvalue().strip()}")


@contextlib.contextmanager
def _inside(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
