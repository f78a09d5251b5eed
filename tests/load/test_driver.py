"""The load process as a process: its end, its secrets, its failures."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from serving import FAKE_ENGINE, TOKENS, FakeServer, small

from pytest_vllmperf.errors import LoadProcessError
from pytest_vllmperf.load import driver
from pytest_vllmperf.load.driver import LoadProgress
from pytest_vllmperf.load.plan import Plan, Progress, deadline_s, encode_frame

Serve = Callable[..., FakeServer]


def _workers(parent: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(parent).children(recursive=True) if _is_worker(child)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "pytest_vllmperf.load.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def _plan(**changes: object) -> Plan:
    values = {
        "workload": small(),
        "base_url": "http://127.0.0.1:9",
        "model": "m",
        "api_key": "top-secret",
        "token_range": TOKENS,
        "seed": 0,
        "deadline_s": 20.0,
    }
    return Plan(**{**values, **changes})


def _run(code: str, **changes: object) -> None:
    driver._run_plan(_plan(**changes), command=(sys.executable, "-c", code), progress=None)


def test_a_process_that_dies_is_told_with_its_last_words_and_without_the_key() -> None:
    code = "import sys; sys.stdin.buffer.read(8); sys.exit('out of luck, key top-secret')"
    with pytest.raises(LoadProcessError) as caught:
        _run(code)
    assert str(caught.value) == (
        "workload 'small': the load process ended without a result (exit code 1); its last words:\nout of luck, key ***"
    )


def test_a_process_that_dies_before_it_reads_is_told_too() -> None:
    with pytest.raises(LoadProcessError, match=r"ended without a result \(exit code 3\); it wrote nothing to stderr"):
        _run("import os; os._exit(3)")


@pytest.mark.parametrize(
    "answer", [b"\0" * 7 + b"\3abc", b"\xff" * 32, encode_frame(Progress(finished=1))[:8] + b"\xc1" * 64]
)
def test_nonsense_on_stdout_is_refused(answer: bytes) -> None:
    code = f"import sys, time; sys.stdout.buffer.write({answer!r}); sys.stdout.flush(); time.sleep(60)"
    with pytest.raises(LoadProcessError, match="answered nonsense"):
        _run(code)


def test_a_process_that_overruns_its_deadline_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_GRACE_S", 0.1)
    with pytest.raises(LoadProcessError, match=r"gave no result within 0\.2 s \(exit code -9\)"):
        _run("import time; time.sleep(60)", deadline_s=0.2)


def test_the_process_ends_itself_when_overdue() -> None:
    plan = encode_frame(_plan(workload=small(requests=2, request_rate=1e-3), deadline_s=0.3))
    command = [sys.executable, "-m", "pytest_vllmperf.load.worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=FAKE_ENGINE.parents[1]
    ) as child:
        assert child.stdin is not None
        child.stdin.write(plan)
        child.stdin.flush()
        assert child.wait(20) == 71


def test_an_impossible_range_of_tokens_is_told() -> None:
    with pytest.raises(LoadProcessError, match=r"token_range=\(5, 5\) must be \(low, high\)"):
        driver.run_load(small(), base_url="http://127.0.0.1:9", model="m", api_key=None, token_range=(5, 5), seed=0)


def test_the_key_is_neither_in_the_arguments_nor_in_the_environment(serve: Serve) -> None:
    seen: list[tuple[str, str]] = []

    def look(_progress: LoadProgress) -> None:
        for worker in _workers(os.getpid()):
            with contextlib.suppress(psutil.NoSuchProcess):  # the last word comes when the process has ended
                seen.append((" ".join(worker.cmdline()), repr(worker.environ())))

    server = serve("--fake-shape", "slow-stall")
    server.load(small(requests=1, timeout_s=1.5), api_key="top-secret", progress=look)
    assert seen, "progress was never told while the load process lived"
    assert not [text for pair in seen for text in pair if "top-secret" in text]


def test_an_interrupt_leaves_no_load_process(serve: Serve) -> None:
    def interrupt(_progress: LoadProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve("--fake-shape", "slow-stall").load(small(requests=1), progress=interrupt)
    assert not _workers(os.getpid())


def test_the_load_process_ignores_the_interrupt_that_reaches_its_whole_group(serve: Serve) -> None:
    server = serve("--fake-ttft-ms", "700")
    hit = threading.Event()

    def interrupt_child(_progress: LoadProgress) -> None:
        for worker in _workers(os.getpid()):
            worker.send_signal(signal.SIGINT)
            hit.set()

    run = server.load(small(requests=1), progress=interrupt_child)
    assert hit.is_set()
    assert run.records[0].succeeded


def test_the_load_process_dies_with_its_parent(serve: Serve, tmp_path: Path) -> None:
    server = serve("--fake-shape", "slow-stall")
    script = tmp_path / "parent.py"
    script.write_text(
        "from pytest_vllmperf.domain.workload import Workload\n"
        "from pytest_vllmperf.load.driver import run_load\n"
        "w = Workload(name='w', input_tokens=4, output_tokens=4, requests=1, max_concurrency=1)\n"
        f"run_load(w, base_url={server.base_url!r}, model='fake', api_key=None, token_range=(300, 900), seed=0)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(FAKE_ENGINE.parents[1])}
    with subprocess.Popen([sys.executable, str(script)], env=env) as parent:
        worker = _wait_for(lambda: next(iter(_workers(parent.pid)), None))
        _wait_for(server.stamps)
        parent.kill()
    _wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_the_worker_is_found_from_any_directory(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asyncio.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    assert serve().load(small()).records[0].succeeded


def test_the_deadline_covers_every_request_timing_out() -> None:
    closed = small(requests=10, max_concurrency=4, timeout_s=100.0)
    assert deadline_s(closed) > 300
    opened = small(requests=10, request_rate=0.5, max_concurrency=None, timeout_s=100.0)
    assert deadline_s(opened) > 20 + 100


def _wait_for(condition: Callable[[], object], limit_s: float = 20.0) -> object:
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {condition}")
