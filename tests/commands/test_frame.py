import argparse
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pytest_vllmperf import cli, commands
from pytest_vllmperf.commands import Answer, columns
from pytest_vllmperf.errors import HistoryError, ThresholdFileError

HEAVY = ("httpx", "lm_eval", "numpy", "pynvml", "pytest", "scipy", "psutil", "tomlkit", "jinja2", "rich")


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A subcommand `sample`, whose `run` a test replaces."""
    module = types.ModuleType("pytest_vllmperf.commands.sample", "Do a sample thing.\n\nMore about it.")
    module.add_arguments = lambda parser: parser.add_argument("what", nargs="?", default="nothing")
    module.run = lambda options: Answer(text=f"did {options.what}", data={"did": options.what, "in": options.directory})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "command_names", lambda: ("sample",))
    return module


def test_text_for_people(sample: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "this"]) == 0
    assert capsys.readouterr().out == "did this\n"


def test_json_for_machines(sample: types.ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["sample", "that", "--json", "-C", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"did": "that", "in": str(tmp_path)}


def test_the_answer_decides_the_exit_code(sample: types.ModuleType) -> None:
    sample.run = lambda options: Answer(text="", data=None, exit_code=11)
    assert cli.main(["sample"]) == 11


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (HistoryError("no run is called 'x'"), "vllmperf: no run is called 'x'\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "vllmperf: a.json: No such file or directory\n"),
        (ThresholdFileError("t.toml", ["a", "b"]), "vllmperf: t.toml: 2 problems\n  - a\n  - b\n"),
    ],
)
def test_an_error_is_one_clear_message_on_stderr(
    sample: types.ModuleType, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    def refuse(_options: argparse.Namespace) -> Answer:
        raise error

    sample.run = refuse
    assert cli.main(["sample"]) == 2
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", line)


def test_ctrl_c_ends_quietly(sample: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_options: argparse.Namespace) -> Answer:
        raise KeyboardInterrupt

    sample.run = interrupted
    assert cli.main(["sample"]) == 130
    assert capsys.readouterr().err == ""


def test_a_folder_that_is_not_there_is_told(sample: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "-C", "/nowhere/at/all"]) == 2
    assert capsys.readouterr().err == "vllmperf: --directory /nowhere/at/all: no such folder\n"


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["docter"])
    assert ended.value.code == 2
    assert "doctor" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.command_names())
def test_every_command_has_help_json_and_documentation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--json" in shown
    assert "--directory" in shown
    summary = (sys.modules[f"{commands.__name__}.{name.replace('-', '_')}"].__doc__ or "").partition("\n")[0]
    assert summary.endswith("."), "a sentence"
    assert len(summary) <= 75, "fits one line of `vllmperf --help`"


def test_the_list_of_commands_shows_what_each_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for name in cli.command_names():
        assert f"    {name} " in shown


def test_help_loads_nothing_heavy() -> None:
    program = f"""
import sys
from pytest_vllmperf.cli import main
try:
    main(["--help"])
except SystemExit:
    print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_a_reader_that_has_enough_is_no_error() -> None:
    program = "import sys; from pytest_vllmperf.cli import main; sys.exit(main(['doctor', '--offline']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_columns_line_up() -> None:
    text = columns(("name", "n"), [("a", "1"), ("longer", "200")], right=("n",))
    assert text == "name      n\na         1\nlonger  200"
