"""`vllmperf serve` as a process of its own: what it prints, that it serves, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from traces import until

from pytest_vllmperf.adapters.engine_command import free_port

CONFTEST = """
from pytest_vllmperf import EngineConfig

def pytest_vllmperf_engines(config):
    return [
        EngineConfig(name="one", model="fake-model", command={command!r}),
        EngineConfig(name="elsewhere", model="m", url="http://127.0.0.1:9"),
    ]
"""
PATIENCE_S = 60


@pytest.fixture
def project(tmp_path: Path, fake_command: tuple[str, ...]) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST.format(command=fake_command))
    return tmp_path


@pytest.fixture
def serve(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        program = "import sys; from pytest_vllmperf.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "serve", *arguments, "-C", str(project), "--share-cpu"]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "CI")}
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)


def models(address: str, key: str) -> list[str]:
    request = urllib.request.Request(f"{address}/models", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return [model["id"] for model in json.load(answer)["data"]]


def test_it_serves_on_the_port_asked_for_and_ctrl_c_ends_all_of_it(serve: Callable[..., subprocess.Popen[str]]) -> None:
    port = free_port()
    process = serve("one", "--port", str(port), "--json")
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    assert facts["url"] == f"http://127.0.0.1:{port}/v1"
    assert models(facts["url"], facts["api_key"]) == [facts["model"]] == ["fake-model"]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert said.endswith("one: stopped\n")
    assert not psutil.pid_exists(facts["pid"])


def test_what_it_prints_can_be_sourced(serve: Callable[..., subprocess.Popen[str]]) -> None:
    process = serve("one")
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(3)]
    assert told[0] == "# one serves fake-model; Ctrl-C stops it"
    address, key = (line.partition("=")[2] for line in told[1:])
    assert models(address, key) == ["fake-model"]
    process.terminate()
    assert process.wait(timeout=PATIENCE_S) == 0


def test_an_engine_that_dies_ends_the_command_with_the_reason(serve: Callable[..., subprocess.Popen[str]]) -> None:
    process = serve("one", "--json")
    assert process.stdout is not None
    pid = json.loads(process.stdout.readline())["pid"]
    os.kill(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "vllmperf: engine 'one'" in said
    until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("two",), "engine 'two': no such engine; declared: one, elsewhere"),
        (("elsewhere",), "engine 'elsewhere' is a server that runs already (http://127.0.0.1:9)"),
    ],
)
def test_what_cannot_be_served_is_told(
    serve: Callable[..., subprocess.Popen[str]], arguments: tuple[str, ...], said: str
) -> None:
    process = serve(*arguments)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert told.startswith(f"vllmperf: {said}")


def test_a_folder_without_engines_is_told(serve: Callable[..., subprocess.Popen[str]], project: Path) -> None:
    (project / "conftest.py").write_text("")
    process = serve("one")
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "no engines are declared here; name the folder whose conftest.py has the hook" in told


def test_a_conftest_that_cannot_be_imported_is_told(serve: Callable[..., subprocess.Popen[str]], project: Path) -> None:
    (project / "conftest.py").write_text("import no_such_module_anywhere")
    process = serve("one")
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "pytest cannot start here" in told
    assert "no_such_module_anywhere" in told
