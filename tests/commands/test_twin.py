import json
from pathlib import Path

import pytest

from pytest_vllmperf.cli import main


def test_twin_makes_a_model_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["twin", "-C", str(tmp_path), "Qwen3-4B", "twin", "--quantization", "awq", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"directory": str(tmp_path / "twin"), "of": "Qwen3-4B", "quantization": "awq"}
    config = json.loads((tmp_path / "twin" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq"


def test_an_unknown_model_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["twin", "-C", str(tmp_path), "gpt-5", "twin"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vllmperf: 'gpt-5' is neither a built-in shape nor a config.json")
    assert error.count("\n") == 1
