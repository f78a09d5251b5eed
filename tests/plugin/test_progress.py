"""What a run says while it works: a bar on a terminal (a real pty), lines elsewhere, nothing under -q."""

import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest
from pytest_command import PYTEST
from traces import until

SLOW = """
def test_slow(vllm_measure):
    vllm_measure("tiny")
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE_S = 120


@pytest.fixture
def slow(project):
    """A project whose workload takes about two seconds."""
    project.write(
        suite=SLOW,
        engines=[{"name": "one", "args": {"fake-itl-ms": 40}}],
    )
    text = (project.path / "conftest.py").read_text()
    text = text.replace("output_tokens=8, requests=6", "output_tokens=16, requests=6")
    (project.path / "conftest.py").write_text(text)
    return project


def on_a_terminal(project, *arguments, **environment):
    """Everything a run wrote to a terminal of its own."""
    controller, terminal = pty.openpty()
    command = [*PYTEST, "suites/", "--vllmperf-record-only", "-pno:cacheprovider", *arguments]
    process = subprocess.Popen(
        command,
        cwd=project.path,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "110", "LINES": "40", **environment},
    )
    os.close(terminal)
    seen, deadline = b"", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([controller], [], [], 1.0)
        if not ready:
            continue
        try:
            data = os.read(controller, 65536)
        except OSError:  # Linux: the last writer is gone
            break
        if not data:
            break
        seen += data
    os.close(controller)
    assert process.wait(timeout=PATIENCE_S) == 0, seen.decode()
    return seen.decode()


def final_screen(text):
    """The lines a terminal shows in the end, as far as carriage returns and erasures of whole lines go."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif token == "\r":
            continue
        elif token.startswith("\x1b["):
            if token.endswith("K"):
                lines[row] = ""
            elif token.endswith("A"):
                row = max(0, row - int(token[2:-1] or 1))
        else:
            lines[row] += token
    return lines


def test_a_terminal_shows_a_bar_with_live_figures_and_keeps_none_of_it(slow):
    text = on_a_terminal(slow)
    assert re.search(r"one: tiny .*/6 requests, .* tok/s", ESCAPES.sub("", text))
    screen = final_screen(text)
    assert not [line for line in screen if "━" in line], screen
    assert [line for line in screen if "> one: tiny: 6/6 requests in" in line]


def test_no_color_is_honoured(slow):
    text = on_a_terminal(slow, NO_COLOR="1")
    assert "requests" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m|\x1b\[38;", text), "no colour"


def test_output_of_tests_that_is_not_captured_is_never_drawn_over(slow):
    text = on_a_terminal(slow, "-s")
    assert "━" not in text
    assert "> one: tiny: 6/6 requests in" in text


def test_without_a_terminal_there_are_plain_lines(slow):
    result = slow.run("--vllmperf-record-only")
    assert result.ret == 0
    assert "\x1b" not in result.stdout.str()
    result.stdout.fnmatch_lines(["  > one: starting*", "  > one: ready after*", "  > one: tiny: 6/6 requests in*"])


def test_quiet_is_quiet(slow):
    text = on_a_terminal(slow, "-q")
    assert "━" not in text
    assert "> one" not in text


TWO = (
    SLOW
    + """
def test_again(vllm_measure):
    vllm_measure("tiny")
"""
)


@pytest.fixture
def spread(project):
    """Two engines with two tests each, for two workers."""
    pytest.importorskip("xdist")
    project.write(suite=TWO, engines=[{"name": name, "args": {"fake-itl-ms": 20}} for name in ("one", "two")])
    return project


@pytest.mark.parametrize("arguments", [(), ("-v",)])
def test_lines_of_workers_stand_alone_on_a_terminal(spread, arguments):
    text = on_a_terminal(spread, "-n2", "--vllmperf-share-cpu", *arguments)
    lines = [line.rstrip() for line in final_screen(text)]
    said = [line for line in lines if "  > [gw" in line]
    assert all(line.startswith("  > [gw") and line.count("[gw") == 1 for line in said), said
    for engine in ("one", "two"):
        assert sum(bool(re.fullmatch(rf"  > \[gw\d\] {engine}: ready after .* s", line)) for line in said) == 1
        assert sum(f"{engine}: tiny: 6/6 requests in" in line for line in said) >= 1
    assert not [line for line in lines if "━" in line]


def test_quiet_workers_say_nothing(spread):
    text = on_a_terminal(spread, "-n2", "-q", "--vllmperf-share-cpu")
    assert "> [gw" not in text
    assert "━" not in text


def test_lines_of_workers_are_in_the_log_of_ci(spread, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = spread.run("--vllmperf-record-only", "-n2", "--vllmperf-share-cpu")
    assert result.ret == 0
    out = result.stdout.str()
    assert "\x1b" not in out
    assert len(re.findall(r"^  > \[gw\d\] (?:one|two): ready after .* s$", out, re.MULTILINE)) == 2
    assert "> [gw" not in result.stderr.str()
    assert not list(tmp_path.glob("vllmperf-lines-*")), "the pipe is gone"


def test_lines_are_in_a_file_at_once(project):
    """Where standard output is a file or a pipe, as in CI, Python itself writes whole blocks."""
    project.write(suite=SLOW, engines=[{"name": "one", "args": {"fake-itl-ms": 5000}}])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    out = project.path / "out"
    with out.open("wb") as sink:
        process = subprocess.Popen(
            [*PYTEST, "suites/", "--vllmperf-record-only", "-pno:cacheprovider"],
            cwd=project.path,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=environment,
        )
    try:
        until(lambda: "one: tiny: " in out.read_text() or process.poll() is not None)
        assert process.poll() is None, out.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE_S)
