"""Moving history: real folders, real git repositories, real fsspec; nothing lost, nothing doubled."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllmperf import cli
from pytest_vllmperf.adapters.benchmark_storage import save_run

GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


def git(where: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(where), *arguments], check=True, capture_output=True, text=True).stdout


def save(project: Path, number: int, *, hardware: str = "NVIDIA H200", name: str = "run") -> None:
    content = {"benchmarks": [], "datetime": f"2026-01-{number:02}T10:00:00+00:00", "number": number}
    save_run(project / ".benchmarks", content, hardware=hardware, name=name)


def stored(project: Path) -> dict[str, int]:
    found = sorted((project / ".benchmarks").glob("*/*.json"))
    return {f"{path.parent.name}/{path.name}": json.loads(path.read_text())["number"] for path in found}


def move(action: str, project: Path, where: str, *arguments: str) -> int:
    project.mkdir(exist_ok=True)
    return cli.main(["history", action, where, "-C", str(project), *arguments])


@pytest.fixture(params=["folder", "git", "git from anywhere", "fsspec", "fsspec with folders"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A remote of each kind, empty; each project of a test reaches it by the same name."""
    for name, value in GIT.items():
        monkeypatch.setenv(name, value)
    if request.param == "folder":
        return str(tmp_path / "share")
    if request.param == "fsspec":
        return f"memory://{tmp_path.name}/history"
    if request.param == "fsspec with folders":
        return f"file://{tmp_path}/not there yet/history"
    git(tmp_path, "init", "--quiet", "--bare", "central.git")
    if request.param == "git":
        for name in ("one", "two", "three"):
            git(tmp_path, "init", "--quiet", name)
            git(tmp_path / name, "remote", "add", "origin", "../central.git")
        return "git+origin#vllm-history"
    return f"git+{tmp_path / 'central.git'}#vllm-history"


def test_what_one_runner_pushes_the_next_one_pulls(where: str, tmp_path: Path, capsys) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert move("pull", one, where) == 0, "a remote that does not exist yet is an empty one"
    save(one, 2)
    save(one, 1, hardware="CPU AMD EPYC", name="nightly_1")
    assert move("push", one, where) == 0
    assert f"Pushed 2 runs to {where}; 0 were there already." in capsys.readouterr().out

    save(two, 3)
    assert move("pull", two, where) == 0
    assert move("push", two, where) == 0
    assert "Pushed 1 runs" in capsys.readouterr().out

    assert move("pull", three, where) == 0
    assert stored(three) == {
        "CPU-AMD-EPYC/0001_nightly_1.json": 1,
        "NVIDIA-H200/0001_run.json": 2,
        "NVIDIA-H200/0002_run.json": 3,
    }
    before = stored(three)
    assert move("pull", three, where) == 0
    assert move("push", three, where) == 0
    assert stored(three) == before
    assert f"Pushed 0 runs to {where}; 3 were there already." in capsys.readouterr().out


def test_only_the_latest_are_pulled_when_asked(tmp_path: Path, capsys) -> None:
    for number in (1, 2, 3):
        save(tmp_path / "one", number)
    share = str(tmp_path / "share")
    move("push", tmp_path / "one", share)
    assert move("pull", tmp_path / "two", share, "--latest=2") == 0
    assert list(stored(tmp_path / "two").values()) == [2, 3]
    assert move("push", tmp_path / "two", share, "--latest=2") == 2
    assert capsys.readouterr().err == "vllmperf: --latest 2: give a number above 0, and only with pull\n"


def push_thirty(project: Path, where: str, offset: int) -> None:
    for number in range(10):
        save(project, offset + number)
        assert move("push", project, where) == 0


@pytest.mark.parametrize("kind", ["git", "folder"])
def test_two_runners_pushing_at_once_lose_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GIT.items():
        monkeypatch.setenv(name, value)
    git(tmp_path, "init", "--quiet", "--bare", "central.git")
    where = f"git+{tmp_path / 'central.git'}#history" if kind == "git" else str(tmp_path / "share")
    context = multiprocessing.get_context("fork" if sys.version_info < (3, 12) else "spawn")
    runners = [context.Process(target=push_thirty, args=(tmp_path / str(offset), where, offset)) for offset in (1, 11)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(120)
    assert [runner.exitcode for runner in runners] == [0, 0]
    move("pull", tmp_path / "all", where)
    assert sorted(stored(tmp_path / "all").values()) == list(range(1, 21))


def test_git_touches_neither_work_tree_nor_branch_of_the_project(tmp_path: Path, monkeypatch) -> None:
    for name, value in GIT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Me")
    monkeypatch.setenv("EMAIL", "me@example.org")
    git(tmp_path, "init", "--quiet", "--bare", "central.git")
    project = tmp_path / "project"
    git(tmp_path, "clone", "--quiet", "central.git", "project")
    (project / ".gitignore").write_text(".benchmarks\n")
    git(project, "add", ".gitignore")
    git(project, "-c", "user.name=Me", "commit", "--quiet", "-m", "Begin")
    (project / "half-done.txt").write_text("x")
    git(project, "add", "half-done.txt")
    before = git(project, "status", "--porcelain", "--branch"), git(project, "for-each-ref", "refs/heads")
    save(project, 1)
    move("push", project, "git+origin#vllm-history")
    after = git(project, "status", "--porcelain", "--branch"), git(project, "for-each-ref", "refs/heads")
    assert after == before
    files = git(project, "ls-tree", "-r", "--name-only", "refs/vllmperf/vllm-history").split()
    assert [name.partition("_")[0] for name in files] == ["NVIDIA-H200/20260101T100000Z"]


def test_damaged_files_are_left_out_by_name_on_both_ways(tmp_path: Path, capsys) -> None:
    one, share = tmp_path / "one", tmp_path / "share"
    save(one, 1)
    save(one, 2)
    cut = one / ".benchmarks/NVIDIA-H200/0002_run.json"
    cut.write_bytes(cut.read_bytes()[:-5])
    assert move("push", one, str(share)) == 0
    out = capsys.readouterr().out
    assert "Pushed 1 runs" in out
    assert f"! history file {cut} was left out, it cannot be read: " in out
    (there,) = share.glob("*/*.json")
    there.write_bytes(there.read_bytes()[:-5])
    assert move("pull", tmp_path / "two", str(share)) == 0
    assert f"! NVIDIA-H200/{there.name} is damaged there" in capsys.readouterr().out
    assert stored(tmp_path / "two") == {}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("git+origin", "git+origin: name repository and branch, as in git+origin#vllm-history"),
        ("nonsense://bucket/x", "nonsense://bucket/x: Protocol not known: nonsense"),
        ("git+https://me:secret@127.0.0.1:9/x.git#b", "git ls-remote of https://[redacted]@127.0.0.1:9/x.git#b: "),
    ],
)
def test_what_cannot_be_reached_is_told_without_secrets(where: str, message: str, tmp_path: Path, capsys) -> None:
    assert move("pull", tmp_path / "one", where) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "secret" not in told
