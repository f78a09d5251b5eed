"""Faults of a whole run that need no killing: full disks, time limits, names and arguments that try to escape."""

import json
import sys
from pathlib import Path

import pytest
from pytest_command import PLAIN

TESTS = Path(__file__).parents[1]

CONFTEST = """
import errno, os, pathlib, signal
import pytest
from pytest_vllmperf import EngineConfig

FAKE = {command!r}

def pytest_vllmperf_engines(config):
    return [{engines}]
"""

SUITE = """
from pytest_vllmperf import Workload

TINY = Workload(name="tiny", input_tokens=8, output_tokens=4, requests=4, max_concurrency=2)

def test_measures(vllm_measure, vllm_check):
    vllm_check(vllm_measure(TINY), "ttft_mean")
"""

GOOD = 'EngineConfig(name="{name}", model="fake", command=FAKE)'


@pytest.fixture
def write(pytester, fake_command, monkeypatch):
    for name in ("CI", "MODEL", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)

    def write(engines, *, more="", suite=SUITE):
        pytester.makeconftest(CONFTEST.format(command=fake_command, engines=engines) + more)
        pytester.makepyfile(suite)
        (pytester.path / "thresholds.toml").write_text('version = 1\n[[limit]]\nttft_mean = { max = "60 s" }\n')

    return write


FULL = """
original = pathlib.Path.write_text

def full(self, data, *arguments, **named):
    if ".benchmarks" in str(self):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))
    return original(self, data, *arguments, **named)

if os.environ.get("FULL"):
    pathlib.Path.write_text = full
"""


def test_a_full_disk_costs_history_and_neither_verdict_nor_report(pytester, write, monkeypatch):
    """S13: what history held before is untouched."""
    write(GOOD.format(name="one"), more=FULL)
    assert pytester.runpytest_subprocess(*PLAIN).ret == 0
    before = {path: path.read_bytes() for path in (pytester.path / ".benchmarks").rglob("*.json")}
    assert before
    monkeypatch.setenv("FULL", "1")
    result = pytester.runpytest_subprocess(*PLAIN)
    assert result.ret == 3
    result.stdout.fnmatch_lines(["! history was not saved: *No space left on device*vllmperf merge", "*1 passed*"])
    report = json.loads((pytester.path / "reports" / "latest" / "report.json").read_text())
    assert [v["outcome"] for v in report["verdicts"] if v["metric"] == "ttft_mean"] == ["PASS"]
    assert {path: path.read_bytes() for path in (pytester.path / ".benchmarks").rglob("*.json")} == before


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.path.insert(0, {folder!r})
sys.argv = [{fake!r}, *sys.argv[1:]]
for number in range(200):
    try:
        print("INFO filling the log", number, file=sys.stderr, flush=True)
    except OSError:
        break

class Forgiving:
    def write(self, text):  # as logging does: a line that cannot be written is lost, and the server goes on
        pass
    def flush(self):
        pass

sys.stderr = Forgiving()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_log_that_cannot_grow_costs_the_log_and_nothing_else(pytester, write):
    """S12."""
    source = LIMITED.format(folder=str(TESTS), fake=str(TESTS / "fake_engine.py"))
    write(f'EngineConfig(name="one", model="fake", command=({sys.executable!r}, "-c", {source!r}))')
    result = pytester.runpytest_subprocess(*PLAIN)
    assert result.ret == 0, result.stdout.str()
    log = pytester.path / "reports" / "latest" / "logs" / "one.log"
    assert 2048 < log.stat().st_size <= 4096


TIMEOUT = """
import threading, time

@pytest.fixture(scope="session", autouse=True)
def time_limit():
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("Timeout"))  # as pytest-timeout's signal method
    threading.Thread(target=ring_in_the_middle_of_a_start, daemon=True).start()

def ring_in_the_middle_of_a_start():
    while not list(pathlib.Path("told").glob("*.json")):  # the engine has all its processes, and is not ready
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGALRM)
"""


def test_a_time_limit_in_the_middle_of_a_start_is_a_setup_error_and_the_next_engine_is_measured(pytester, write):
    """L07: what was starting is gone when the next starts; on a CPU they could not run beside each other."""
    told = pytester.path / "told"
    told.mkdir()
    stubborn = (sys.executable, str(TESTS / "stubborn_engine.py"), "stubborn", str(told))
    slow = f'EngineConfig(name="slow", model="fake", command={stubborn!r}, args={{"fake-start-delay-s": 60}})'
    write(f"{slow}, {GOOD.format(name='two')}", more=TIMEOUT)
    result = pytester.runpytest_subprocess(*PLAIN, "-rA")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*Failed: Timeout*"])
    (notes,) = told.glob("*.json")
    traces = json.loads(notes.read_text())
    for name in ("leader", "in_group", "escaped"):
        stat = Path(f"/proc/{traces['pids'][name]}/stat")
        assert not stat.exists() or "stubborn" not in Path(f"/proc/{traces['pids'][name]}/cmdline").read_text()
    assert [path for path in traces["files"] if Path(path).exists()] == []


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a" * 300, "nul\0", "ünï", "a b", "", "."])
def test_a_name_that_would_leave_the_report_folder_is_refused(name):
    """X04."""
    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.errors import EngineConfigError

    with pytest.raises(EngineConfigError, match="engine name"):
        EngineConfig(name=name, model="m")


def test_names_that_differ_in_case_only_are_refused(pytester, write):
    """X04: they would be one file where the file system knows no case."""
    write(f"{GOOD.format(name='one')}, {GOOD.format(name='One')}")
    result = pytester.runpytest_subprocess(*PLAIN)
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*'One'*differs from 'one' in case only*"])


def test_arguments_never_meet_a_shell(pytester, write):
    """X05."""
    nasty = {"fake-version": "; touch pwn", "fake-answer": "$(touch pwn) `touch pwn`\n&& touch pwn"}
    write(f'EngineConfig(name="one", model="fake", command=FAKE, args={nasty!r}, env={{"X": "$(touch pwn)"}})')
    assert pytester.runpytest_subprocess(*PLAIN).ret == 0
    assert list(pytester.path.rglob("pwn")) == []


def test_an_engine_listens_on_loopback_only(tmp_path, fake_command):
    """X09."""
    import psutil
    from test_pool import CPU

    from pytest_vllmperf.domain.engine import EngineConfig
    from pytest_vllmperf.pool import EnginePool

    config = EngineConfig(name="one", model="fake", command=fake_command)
    pool = EnginePool(engines={"one": config}, environment=CPU, directory=tmp_path)
    try:
        handle = pool.acquire("one")
        listening = [c.laddr.ip for c in psutil.Process(handle.pid).net_connections("inet") if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
    finally:
        pool.close()
