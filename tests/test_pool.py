"""The pool with fake engines: real subprocesses that speak vLLM's API."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_vllmperf import pool as pool_module
from pytest_vllmperf import starting
from pytest_vllmperf.adapters import engine_command, engine_process
from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.environment import Environment, Gpu
from pytest_vllmperf.errors import EngineError, EngineExited, EngineStartTimeout, EngineUnavailable
from pytest_vllmperf.pool import EnginePool

CPU = Environment(
    hardware="CPU test",
    device="cpu",
    gpus=(),
    driver=None,
    cpu="test",
    cores=2,
    memory_bytes=2**33,
    platform="test",
    python="3",
    packages={},
    commit=None,
    dirty=None,
    warnings=(),
)
GPUS = tuple(Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA H200", memory_bytes=None) for i in range(2))
TWO_GPUS = replace(CPU, hardware="NVIDIA H200", device="gpu", gpus=GPUS)


@pytest.fixture
def make_pool(fake_command, tmp_path):
    """``make_pool({"args": …}, …)`` gives a pool of fake engines named one, two, …; closed afterwards."""
    pools = []

    def make(*engines, environment=CPU, progress=None):
        names = ("one", "two", "three")
        configs = {
            name: EngineConfig(**{"name": name, "model": "fake", "command": fake_command, **engine})
            for name, engine in zip(names, engines or ({},), strict=False)
        }
        pool = EnginePool(engines=configs, environment=environment, directory=tmp_path / "logs", progress=progress)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------------- ready


def test_a_ready_engine_answers_and_says_how_it_started(make_pool):
    pool = make_pool({"args": {"fake-ttft-ms": 30, "fake-version": "0.32.0"}})
    handle = pool.acquire("one")
    assert handle.name == "one"
    assert handle.model_name == "fake"
    assert handle.version == "0.32.0"
    assert handle.start_up.first_request_ttft_ns >= 30_000_000
    assert handle.start_up.time_to_ready_ns > handle.start_up.first_request_ttft_ns
    assert handle.start_up.cold is None
    assert "fake engine" in Path(handle.log_path).read_text()
    with ControlClient(handle.base_url, handle.api_key) as control:
        assert control.models() == ("fake",)
    pool.ensure_alive("one")


def test_a_second_use_is_the_same_launch(make_pool):
    pool = make_pool()
    assert pool.launches("one") == 0
    assert pool.acquire("one") is pool.acquire("one")
    assert pool.launches("one") == 1


def test_flags_for_the_device_are_used_and_the_handle_shows_them(make_pool):
    pool = make_pool({"args": {"fake-version": "any"}, "cpu_args": {"fake-version": "cpu"}})
    handle = pool.acquire("one")
    assert handle.version == "cpu"
    assert dict(handle.config.args) == {"fake-version": "cpu"}
    assert handle.device == "cpu"


def test_the_key_is_in_the_environment_and_nowhere_else(make_pool):
    """X02."""
    pool = make_pool()
    handle = pool.acquire("one")
    assert len(handle.api_key) >= 32
    assert f"VLLM_API_KEY={handle.api_key}" in Path(f"/proc/{handle.pid}/environ").read_text()
    assert handle.api_key not in Path(f"/proc/{handle.pid}/cmdline").read_text()
    assert handle.api_key not in Path(handle.log_path).read_text()
    assert handle.api_key not in repr(handle)
    assert handle.api_key not in repr(pool.reports())


def test_every_launch_has_a_key_of_its_own(make_pool):
    pool = make_pool({}, {})
    assert pool.acquire("one").api_key != pool.acquire("two").api_key


def test_progress_tells_start_and_ready(make_pool):
    lines = []
    handle = make_pool(progress=lines.append).acquire("one")
    assert lines[0] == f"one: starting (pid {handle.pid}, log {handle.log_path})"
    assert lines[-1].startswith("one: ready after ")


def test_progress_tells_the_phase_the_log_shows(make_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "_TELL_EVERY_S", 0.0)
    lines = []
    source = "import time; print('INFO Starting to load model x', flush=True); time.sleep(0.6)"
    pool = make_pool({"command": (sys.executable, "-c", source)}, progress=lines.append)
    with pytest.raises(EngineExited):
        pool.acquire("one")
    assert any(line.startswith("one: loading weights (") for line in lines)


# ---------------------------------------------------------------------- not ready


def test_an_engine_that_fails_tells_the_cause_from_its_log(make_pool, tmp_path):
    pool = make_pool({"args": {"fake-fail-start": "ValueError: no kernel for this", "fake-exit-code": 3}})
    with pytest.raises(EngineExited) as caught:
        pool.acquire("one")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("engine 'one' ended with code 3 after ")
    assert lines[0].endswith(" s, before it was ready")
    assert lines[1] == "  cause: ValueError: no kernel for this"
    assert lines[2] == f"  log:   {tmp_path / 'logs' / 'one.log'}, the traceback:"
    assert lines[-1] == "    ValueError: no kernel for this"


def test_a_failed_launch_is_remembered_and_not_repeated(make_pool):
    pool = make_pool({"args": {"fake-fail-start": "ValueError: no"}}, {})
    with pytest.raises(EngineExited) as first:
        pool.acquire("one")
    with pytest.raises(EngineExited) as second:
        pool.acquire("one")
    with pytest.raises(EngineExited) as third:
        pool.ensure_alive("one")
    assert first.value is second.value is third.value
    assert pool.launches("one") == 1
    assert pool.acquire("two").name == "two"


def test_leaving_with_code_0_before_being_ready_is_a_failure_too(make_pool):
    pool = make_pool({"args": {"fake-fail-start": "ValueError: no", "fake-exit-code": 0}})
    with pytest.raises(EngineExited, match="ended with code 0"):
        pool.acquire("one")


def test_an_unknown_flag_is_answered_with_advice(make_pool):
    pool = make_pool({"args": {"reject-flags": True, "swap-space": 8}})
    with pytest.raises(EngineExited, match=r"no --swap-space 8: it was renamed.*\[unknown-flag\]"):
        pool.acquire("one")


def test_an_exit_is_noticed_within_two_seconds(make_pool, tmp_path):
    """S01."""
    stamp = tmp_path / "stamp"
    source = f"import time; time.sleep(0.3); open({str(stamp)!r}, 'w').write(str(time.monotonic()))"
    pool = make_pool({"command": (sys.executable, "-c", source)})
    with pytest.raises(EngineExited):
        pool.acquire("one")
    assert time.monotonic() - float(stamp.read_text()) < 2.0


def test_an_engine_that_takes_too_long_is_stopped(make_pool):
    lines = []
    pool = make_pool({"args": {"fake-start-delay-s": 60}, "startup_timeout_s": 0.5}, progress=lines.append)
    with pytest.raises(EngineStartTimeout, match=r"not ready after 0\.5 s \(startup_timeout_s\): it never answered"):
        pool.acquire("one")
    pid = int(lines[0].split("pid ")[1].split(",")[0])
    assert not is_alive(pid)


def test_an_engine_that_never_streams_a_token_is_not_ready(make_pool):
    pool = make_pool({"args": {"fake-ttft-ms": 60_000}, "startup_timeout_s": 2.0})
    with pytest.raises(EngineStartTimeout, match="ReadTimeout"):
        pool.acquire("one")


DISOBEDIENT = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = [sys.argv[1], *("other" if argument == "fake" else argument for argument in sys.argv[2:])]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_engine_that_serves_another_model_is_not_waited_for(make_pool, monkeypatch, fake_command):
    monkeypatch.setattr(starting, "_SETTLE_S", 0.1)
    pool = make_pool({"command": (sys.executable, "-c", DISOBEDIENT, *fake_command[1:])})
    with pytest.raises(EngineError, match=r"lists other, not 'fake': set EngineConfig\(served_model_name=…\)"):
        pool.acquire("one")


def test_a_missing_model_directory_is_refused_before_any_launch(make_pool):
    pool = make_pool({"model": "/nowhere/model"})
    with pytest.raises(EngineError, match="engine 'one': model='/nowhere/model': there is nothing at /nowhere/model"):
        pool.acquire("one")
    assert pool.launches("one") == 0


def test_a_missing_executable_is_named(make_pool):
    pool = make_pool({"command": ("/nowhere/python",)})
    with pytest.raises(EngineError, match="engine 'one': cannot run '/nowhere/python': it is not there"):
        pool.acquire("one")
    assert pool.launches("one") == 0


def test_an_unknown_name_lists_the_known_ones(make_pool):
    with pytest.raises(EngineError, match="engine 'five' is not in the matrix; known: one, two"):
        make_pool({}, {}).acquire("five")


def test_an_interrupt_while_starting_leaves_nothing_running(make_pool):
    pids = []

    def interrupt(line):
        pids.append(int(line.split("pid ")[1].split(",")[0]))
        raise KeyboardInterrupt

    pool = make_pool(progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire("one")
    assert not is_alive(pids[0])


# ---------------------------------------------------------------------- ports


@pytest.fixture
def listener():
    """A socket somebody else listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def choose(monkeypatch, *ports):
    """Let the pool choose these ports one after the other, then free ones."""
    left = list(ports)
    free = engine_command.free_port
    monkeypatch.setattr(engine_command, "free_port", lambda: left.pop(0) if left else free())


def test_a_port_taken_before_the_launch_costs_nothing(make_pool, monkeypatch, listener):
    """S08."""
    choose(monkeypatch, listener)
    pool = make_pool()
    assert not pool.acquire("one").base_url.endswith(f":{listener}")
    assert pool.launches("one") == 1


def test_a_port_taken_while_starting_is_tried_once_more_elsewhere(make_pool, monkeypatch, listener):
    """S08."""
    choose(monkeypatch, listener)
    monkeypatch.setattr(engine_command, "is_port_free", lambda _port: True)
    lines = []
    pool = make_pool(progress=lines.append)
    assert not pool.acquire("one").base_url.endswith(f":{listener}")
    assert pool.launches("one") == 2
    assert "one: its port was taken, trying another" in lines


def test_a_port_taken_twice_is_a_failure(make_pool, monkeypatch, listener):
    """S08."""
    choose(monkeypatch, listener, listener)
    monkeypatch.setattr(engine_command, "is_port_free", lambda _port: True)
    with pytest.raises(EngineExited, match=r"\[Errno 98\](?s:.*)\[port-taken\]"):
        make_pool().acquire("one")


def test_a_strangers_server_is_never_measured(make_pool, monkeypatch, fake_command):
    """S09."""
    port = engine_command.free_port()
    command = (*fake_command, "--model", "fake", "--port", str(port))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as stranger:
        with ControlClient(f"http://127.0.0.1:{port}") as control:
            deadline = time.monotonic() + 20
            while not control.is_healthy():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        choose(monkeypatch, port, port)
        monkeypatch.setattr(engine_command, "is_port_free", lambda _port: True)
        pool = make_pool({"command": (sys.executable, "-c", "import time; time.sleep(60)")})
        with pytest.raises(EngineError, match=f"port {port} is served by someone else"):
            pool.acquire("one")
        stranger.terminate()


# ---------------------------------------------------------------------- afterwards


def test_a_crash_after_ready_is_told_with_its_cause_and_remembered(make_pool):
    pool = make_pool({"args": {"fake-exit-after-requests": 1, "fake-exit-code": 0}})
    handle = pool.acquire("one")
    with ControlClient(handle.base_url, handle.api_key) as control, pytest.raises(EngineError):
        control.first_token("fake")
    with pytest.raises(
        EngineExited, match=r"ended with code 0 after it was ready\n  cause: .*EngineCore failed"
    ) as told:
        pool.ensure_alive("one")
    with pytest.raises(EngineExited) as again:
        pool.acquire("one")
    assert told.value is again.value
    assert pool.launches("one") == 1


def test_a_killed_engine_is_told_by_its_signal(make_pool):
    pool = make_pool()
    os.kill(pool.acquire("one").pid, signal.SIGKILL)
    with pytest.raises(EngineExited, match="ended with SIGKILL"):
        pool.ensure_alive("one")


def test_a_running_engine_that_does_not_answer_is_stopped(make_pool, monkeypatch):
    monkeypatch.setattr(pool_module, "_DYING_S", 0.1)
    monkeypatch.setattr(pool_module, "_ANSWER_S", 0.2)
    pool = make_pool()
    handle = pool.acquire("one")
    os.kill(handle.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="does not answer /health any more"):
        pool.ensure_alive("one")
    assert not is_alive(handle.pid)


def test_only_a_running_engine_can_be_alive(make_pool):
    with pytest.raises(EngineError, match="engine 'one' is not running; acquire it first"):
        make_pool().ensure_alive("one")


def test_released_engines_are_gone_and_stay_so(make_pool):
    pool = make_pool()
    handle = pool.acquire("one")
    pool.release("one")
    pool.release("one")
    assert not is_alive(handle.pid)
    with pytest.raises(EngineError, match="engine 'one' was stopped already"):
        pool.acquire("one")
    assert pool.launches("one") == 1


def test_releasing_an_engine_before_its_launch_does_not_prevent_it(make_pool):
    pool = make_pool()
    pool.release("one")
    assert pool.acquire("one").name == "one"


def test_closing_stops_every_engine_even_when_one_resists(make_pool, monkeypatch):
    pool = make_pool({}, {})
    pids = [pool.acquire(name).pid for name in ("one", "two")]
    stop = engine_process.EngineProcess.stop

    def resist(self, *args):
        stop(self, *args)
        if self.pid == pids[1]:
            raise EngineError("survived SIGKILL")

    monkeypatch.setattr(engine_process.EngineProcess, "stop", resist)
    with pytest.raises(EngineError, match="survived SIGKILL"):
        pool.close()
    assert [pid for pid in pids if is_alive(pid)] == []


# ---------------------------------------------------------------------- GPUs


def test_an_engine_that_requires_a_gpu_is_unavailable_without_one(make_pool):
    pool = make_pool({"requires": ("gpu",)})
    with pytest.raises(EngineUnavailable, match="engine 'one' requires a GPU, and none is visible here"):
        pool.acquire("one")
    (report,) = pool.reports()
    assert (report.state, report.launches, report.log_path) == ("skipped", 0, None)


def test_more_gpus_than_there_are_make_an_engine_unavailable(make_pool):
    pool = make_pool({"gpus": 3}, environment=TWO_GPUS)
    with pytest.raises(EngineUnavailable, match="engine 'one' needs 3 GPUs, and 2 are visible here"):
        pool.acquire("one")


def test_engines_get_gpus_of_their_own_by_uuid(make_pool):
    pool = make_pool({}, {}, environment=TWO_GPUS)
    for name, uuid in (("one", "GPU-0"), ("two", "GPU-1")):
        handle = pool.acquire(name)
        assert f"CUDA_VISIBLE_DEVICES={uuid}\0" in Path(f"/proc/{handle.pid}/environ").read_text()
        assert pool.gpu_uuids(name) == (uuid,)


def test_gpus_held_by_another_engine_are_free_after_its_release(make_pool):
    pool = make_pool({}, {"gpus": 2}, environment=TWO_GPUS)
    pool.acquire("one")
    with pytest.raises(EngineUnavailable, match="engine 'two' needs 2 GPUs and 1 are free: release one first"):
        pool.acquire("two")
    pool.release("one")
    pool.acquire("two")
    assert pool.gpu_uuids("two") == ("GPU-0", "GPU-1")


# ---------------------------------------------------------------------- reports


def test_reports_say_what_became_of_each_engine_that_was_asked_for(make_pool, tmp_path):
    good = {"env": {"HF_TOKEN": "hf_very_secret", "COLOR": "blue"}, "args": {"fake-version": "0.32.0"}}
    pool = make_pool(good, {"args": {"fake-fail-start": "ValueError: no"}}, {})
    pool.acquire("one")
    with pytest.raises(EngineExited):
        pool.acquire("two")
    pool.close()
    one, two = pool.reports()
    assert (one.name, one.model, one.state, one.reason, one.launches) == ("one", "fake", "measured", None, 1)
    assert one.version == "0.32.0"
    assert one.log_path == str(tmp_path / "logs" / "one.log")
    assert "--served-model-name" in one.command
    assert one.env["COLOR"] == "blue"
    assert "hf_very_secret" not in repr(one)
    assert (two.name, two.state, two.launches) == ("two", "failed", 1)
    assert "ValueError: no" in two.reason
