"""What the documentation shows works: snippets run, options, commands and links exist, the reference is complete."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_command import PLAIN

from pytest_vllmperf import cli
from pytest_vllmperf.adapters.threshold_file import read_thresholds
from pytest_vllmperf.domain.hints import HINTS
from pytest_vllmperf.domain.metrics import METRICS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import docs_reference  # noqa: E402 - found by the line before

PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md"), ROOT / "README.md"])
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)(?:#[^)]*)?\)")


def snippets(language):
    found = []
    for page in PAGES:
        for number, (kind, title, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if kind == language:
                found.append(pytest.param(page, title, text, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.mark.parametrize(("page", "title", "text"), snippets("python"))
def test_python_compiles(page, title, text):
    compile(text, f"{page.name}:{title}", "exec")


@pytest.mark.parametrize(("page", "title", "text"), [p for p in snippets("python") if p.values[1] == "conftest.py"])
def test_a_conftest_declares_what_it_shows(page, title, text):
    names = {}
    exec(compile(text, f"{page.name}:{title}", "exec"), names)
    hooks = [name for name in names if name.startswith("pytest_vllmperf_")]
    assert hooks
    for name in hooks:
        if name != "pytest_vllmperf_sections":
            assert list(names[name](config=None))


@pytest.mark.parametrize(("page", "title", "text"), snippets("toml"))
def test_limits_can_be_read(page, title, text, tmp_path):
    path = tmp_path / "thresholds.toml"
    path.write_text(text, encoding="utf-8")
    engines = ("baseline", "fp8-kv", "next", "stable", "max-perf")
    assert read_thresholds(path, engines=engines, workloads=("chat", "rag", "burst", "heavy", "gsm8k")).tables


@pytest.mark.parametrize(("page", "title", "text"), snippets("console"))
def test_commands_and_options_exist(page, title, text):
    options = {
        line.split("`")[1].partition("=")[0]
        for line in docs_reference.options_page().splitlines()
        if line.startswith("| `--")
    }
    for line in text.splitlines():
        _prompt, dollar, command = line.partition("$ ")
        assert dollar, f"{page.name}: {line!r} shows no prompt"
        words = shlex.split(command.replace("make suites ARGS=", "pytest "))
        words = [word for part in words for word in (part.split() if " " in part else [part])]
        unknown = [w for w in words if w.startswith("--vllmperf") and w.partition("=")[0] not in options]
        assert not unknown, f"{page.name}: {unknown}"
        if Path(words[0]).name == "vllmperf":
            assert words[1] in cli.command_names(), f"{page.name}: vllmperf {words[1]}"
            help_text = docs_reference._help(cli, [words[1], "--help"])
            for word in words[2:]:
                if word.startswith("--"):
                    assert word.partition("=")[0] in help_text, f"{page.name}: vllmperf {words[1]} {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    pages = {f"{name}.md" for name in docs_reference.PAGES}
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        if path.parent == ROOT / "docs" / "reference":
            assert path.name in pages, f"{page.name}: {target}"
        else:
            assert path.exists(), f"{page.name}: {target}"


def test_the_reference_has_everything():
    pages = dict(docs_reference.pages())
    for name, entry in METRICS.items():
        if entry.statistic is None:
            assert f"| `{name}` |" in pages["metrics.md"]
    for hint in HINTS:
        assert f"| `{hint.id}` |" in pages["hints.md"]
    for name in cli.command_names():
        assert f"## `vllmperf {name}`" in pages["command.md"]
    for name in (
        "pytest_vllmperf_engines(config)",
        "pytest_vllmperf_sections(config, report)",
        "vllm_measure",
        "vllm_check",
    ):
        assert f"### `{name}`" in pages["hooks.md"]
    for name in ("--vllmperf-engine=NAME", "--vllmperf-report=FORMATS", "vllmperf_report_dir"):
        assert f"`{name}`" in pages["options.md"]
    for code in (0, 1, 10, 11, 12):
        assert f"| {code} |" in pages["exit-codes.md"]
    assert "`tolerance`" in pages["thresholds.md"]
    assert "**Args:**" in pages["declarations.md"]
    assert '"$id": "urn:pytest-vllmperf:report:1"' in pages["report-json.md"]


def test_the_reference_is_written_as_files_too(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "docs_reference.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(docs_reference.PAGES)


def test_the_tutorial_runs_as_it_is_written(tmp_path, fake_command, pytester, monkeypatch):
    """Its conftest, suite and limits, with a fake engine in vLLM's place and fewer requests."""
    for variable in ("CI", "MODEL", "PYTEST_ADDOPTS", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(variable, raising=False)
    for _, title, text in FENCE.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")):
        if title and not title.startswith(".github"):
            path = pytester.path / title
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    conftest = pytester.path / "conftest.py"
    text = conftest.read_text(encoding="utf-8").replace('{"max-model-len": 16384', '{"max-model-len": 2048')
    command = (*fake_command, "--fake-ttft-ms", "300", "--fake-itl-ms", "4")  # no work for two cores
    text = text.replace("model=MODEL,", f"model=MODEL, command={command!r},").replace("requests=100", "requests=40")
    conftest.write_text(text, encoding="utf-8")
    result = pytester.runpytest_subprocess("suites/", *PLAIN)
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["Every limit held (* PASS of * limits judged*"])
