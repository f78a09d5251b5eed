"""Real process trees: started, looked at, ended without a trace."""

import mmap
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from pytest_vllmperf.adapters.engine_command import (
    child_environment,
    free_port,
    is_port_free,
    launch_command,
    missing_model,
)
from pytest_vllmperf.adapters.engine_process import EngineProcess
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.errors import EngineError

PATIENCE_S = 20.0

STUBBORN = """
import os, signal, sys, time
folder = sys.argv[1]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def child(name, leave_group):
    if os.fork() == 0:
        if leave_group:
            os.setsid()
        open(os.path.join(folder, name), "w").write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
child("in_group", False)
child("escaped", True)
open(os.path.join(folder, "leader"), "w").write(str(os.getpid()))
time.sleep(60)
"""
"""A tree whose members all ignore SIGTERM; one has left the group."""


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.01)
    return value


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids_of(folder, *names):
    return until(
        lambda: (
            all((folder / n).exists() and (folder / n).read_text() for n in names)
            and [int((folder / n).read_text()) for n in names]
        )
    )


@pytest.fixture
def launch(tmp_path):
    """Start Python source as an engine process; whatever it started is gone afterwards."""
    started = []

    def start(source, *args, env=None):
        process = EngineProcess(
            (sys.executable, "-c", source, *args), env=env or dict(os.environ), log_path=tmp_path / "logs" / "e.log"
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop(grace_s=0.0)


def sleeper(folder):
    """Source of a process that says it is there and sleeps."""
    return f"import os, time; open({str(folder / 'up')!r}, 'w').write(str(os.getpid())); time.sleep(60)"


# ---------------------------------------------------------------------- command and environment


def config(**changes):
    return EngineConfig(**{"name": "one", "model": "org/model", **changes})


def test_the_command_holds_model_address_and_flags():
    command = launch_command(config(args={"max-model-len": 8, "enforce-eager": True}), port=4321)
    assert command[:3] == (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    assert command[3:] == (
        *("--model", "org/model", "--served-model-name", "org/model", "--host", "127.0.0.1", "--port", "4321"),
        *("--max-model-len", "8", "--enforce-eager"),
    )


def test_a_command_of_ones_own_gets_the_same_flags():
    command = launch_command(config(command=("python", "server.py"), served_model_name="m"), port=1)
    assert command[:6] == ("python", "server.py", "--model", "org/model", "--served-model-name", "m")


def test_vllm_serve_takes_the_model_as_an_argument():
    command = launch_command(config(command=("vllm", "serve"), served_model_name="m"), port=1)
    assert command[:5] == ("vllm", "serve", "org/model", "--served-model-name", "m")


def test_a_model_under_home_is_given_in_full(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert "/home/somebody/model" in launch_command(config(model="~/model"), port=1)


def environment_of(configuration, *, device="cpu", gpu_uuids=(), **base):
    return child_environment(configuration, device=device, api_key="k", gpu_uuids=gpu_uuids, base=base)


def test_the_environment_has_the_key_and_our_defaults(tmp_path):
    env = environment_of(config(model=str(tmp_path)), PATH="/bin", PYTHONDONTWRITEBYTECODE="1")
    assert env == {
        "PATH": "/bin",
        "VLLM_API_KEY": "k",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def test_a_hub_model_may_use_the_hub_and_a_gpu_engine_gets_no_cpu_cache():
    env = environment_of(config(), device="gpu", gpu_uuids=("GPU-a", "GPU-b"))
    assert "HF_HUB_OFFLINE" not in env
    assert "VLLM_CPU_KVCACHE_SPACE" not in env
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_what_the_user_set_stands_over_our_defaults_but_never_over_the_key():
    chosen = config(env={"VLLM_NO_USAGE_STATS": "0", "VLLM_API_KEY": "mine", "PYTHONDONTWRITEBYTECODE": "1"})
    env = environment_of(chosen, VLLM_CPU_KVCACHE_SPACE="4")
    assert (env["VLLM_NO_USAGE_STATS"], env["VLLM_CPU_KVCACHE_SPACE"]) == ("0", "4")
    assert env["VLLM_API_KEY"] == "k"
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere", "../nowhere", "~/nowhere-at-all"])
def test_a_path_with_nothing_there_is_a_missing_model(model):
    found = missing_model(model)
    assert found is not None
    assert found.is_absolute()


def test_hub_ids_and_existing_paths_are_not_missing(tmp_path):
    assert missing_model("org/model") is None
    assert missing_model(str(tmp_path)) is None


# ---------------------------------------------------------------------- ports


def test_a_port_somebody_listens_on_is_not_free():
    import socket

    port = free_port()
    assert is_port_free(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not is_port_free(port)
    assert is_port_free(port)


LISTENER = """
import os, socket, sys, time
s = socket.socket(); s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
s.close()
time.sleep(60)
"""


def test_a_port_is_known_to_be_served_by_a_descendant(launch):
    port = free_port()
    process = launch(LISTENER, str(port))
    until(lambda: process.listens_on(port))
    assert not process.listens_on(port + 1)


def test_a_strangers_port_is_not_ours(launch, tmp_path):
    import socket

    process = launch(sleeper(tmp_path))
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        assert not process.listens_on(stranger.getsockname()[1])


# ---------------------------------------------------------------------- starting


def test_an_engine_has_a_group_of_its_own_in_our_session(launch, tmp_path):
    process = launch(sleeper(tmp_path))
    assert os.getpgid(process.pid) == process.pid
    assert os.getsid(process.pid) == os.getsid(0)


def test_output_goes_to_the_log_and_input_is_empty(launch):
    process = launch("import sys; print('out'); print('err', file=sys.stderr); sys.exit(len(sys.stdin.read()) + 3)")
    assert process.wait(PATIENCE_S) == 3
    assert process.exit_code() == 3
    assert sorted(process.log_path.read_text().split()) == ["err", "out"]


def test_waiting_for_a_living_process_ends_without_an_exit_code(launch, tmp_path):
    assert launch(sleeper(tmp_path)).wait(0.01) is None


@pytest.mark.parametrize("command", ["/nowhere/python", "no-such-command-anywhere"])
def test_a_missing_executable_is_named(tmp_path, command):
    with pytest.raises(EngineError, match=f"cannot run '{command}': No such file or directory.*EngineConfig"):
        EngineProcess((command,), env={"PATH": "/bin"}, log_path=tmp_path / "e.log")


def test_a_file_that_may_not_be_run_is_named(tmp_path):
    (tmp_path / "script").write_text("")
    with pytest.raises(EngineError, match="Permission denied"):
        EngineProcess((str(tmp_path / "script"),), env={}, log_path=tmp_path / "e.log")


def test_temporary_files_go_to_a_short_private_folder_that_is_removed(launch, tmp_path):
    source = (
        "import os, tempfile, time\n"
        "fd, path = tempfile.mkstemp()\n"
        f"open({str(tmp_path / 'draft')!r}, 'w').write(path)\n"
        f"os.rename({str(tmp_path / 'draft')!r}, {str(tmp_path / 'said')!r})\n"
        "time.sleep(60)"
    )
    process = launch(source)
    until((tmp_path / "said").exists)
    temporary = Path((tmp_path / "said").read_text())
    assert temporary.exists()
    assert temporary.parent.stat().st_mode & 0o777 == 0o700
    assert len(str(temporary.parent)) < 80
    process.stop()
    assert not temporary.parent.exists()


# ---------------------------------------------------------------------- ending


@pytest.mark.parametrize("suspended", [False, True])
def test_stopping_a_willing_engine_takes_no_kill(launch, tmp_path, suspended):
    source = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(0)))\n"
        f"open({str(tmp_path / 'up')!r}, 'w').write('1')\n"
        "time.sleep(60)"
    )
    process = launch(source)
    until((tmp_path / "up").exists)
    if suspended:
        os.kill(process.pid, signal.SIGSTOP)
    process.stop()
    assert process.exit_code() == 0
    assert process.log_path.read_text() == "bye\n"


def test_members_that_ignore_the_request_are_killed_even_outside_of_the_group(launch, tmp_path):
    """L12."""
    process = launch(STUBBORN, str(tmp_path))
    pids = pids_of(tmp_path, "leader", "in_group", "escaped")
    process.stop(grace_s=0.1)
    assert [pid for pid in pids if is_alive(pid)] == []
    assert process.exit_code() == -signal.SIGKILL


def test_what_a_crashed_leader_leaves_is_killed(launch, tmp_path):
    process = launch(STUBBORN, str(tmp_path))
    leader, in_group, escaped = pids_of(tmp_path, "leader", "in_group", "escaped")
    process.take_stock()
    os.kill(leader, signal.SIGKILL)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert is_alive(in_group)
    assert is_alive(escaped)
    process.stop(grace_s=0.5)
    assert not is_alive(in_group)
    assert not is_alive(escaped)


def test_stopping_twice_is_stopping_once(launch, tmp_path):
    process = launch(sleeper(tmp_path))
    process.stop()
    process.stop()
    assert not is_alive(process.pid)


SHARED = """
import mmap, os, sys, time
fd = os.open("/dev/shm/" + sys.argv[1], os.O_CREAT | os.O_RDWR, 0o600)
os.ftruncate(fd, 4096)
block = mmap.mmap(fd, 4096)
os.close(fd)
os.rename("/dev/shm/" + sys.argv[1], "/dev/shm/" + sys.argv[2])
open(sys.argv[3], "w").write("1")
time.sleep(60)
"""


@pytest.mark.parametrize("crash", [False, True])
def test_shared_memory_is_removed_under_whatever_name_it_was_mapped(launch, tmp_path, crash):
    """As a semaphore: made under a temporary name, then renamed."""
    name = f"psm_{uuid.uuid4().hex[:8]}"
    process = launch(SHARED, f"draft.{name}", name, str(tmp_path / "up"))
    until((tmp_path / "up").exists)
    process.take_stock()
    if crash:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
    process.stop()
    assert not Path("/dev/shm", name).exists()


def test_shared_memory_of_others_stays(launch, tmp_path):
    foreign = Path("/dev/shm", f"psm_{uuid.uuid4().hex[:8]}")
    foreign.write_bytes(b"\0" * mmap.PAGESIZE)
    try:
        process = launch(SHARED, "psm_draft", f"psm_{uuid.uuid4().hex[:8]}", str(tmp_path / "up"))
        until((tmp_path / "up").exists)
        process.stop()
        assert foreign.exists()
    finally:
        foreign.unlink()


FORGETFUL = """
import os, sys
from pathlib import Path
from pytest_vllmperf.adapters.engine_process import EngineProcess
process = EngineProcess(
    (sys.executable, "-c", "import time; time.sleep(60)"), env=dict(os.environ), log_path=Path(sys.argv[1])
)
if os.fork() == 0:
    sys.exit(0)  # a forked child that ends must not stop its parent's engine
os.wait()
print(process.pid, process.exit_code(), flush=True)
"""


def test_an_engine_nobody_stopped_ends_with_its_owner_and_not_with_the_owners_children(tmp_path):
    done = subprocess.run(
        (sys.executable, "-c", FORGETFUL, str(tmp_path / "e.log")),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    pid, code = done.stdout.split()
    assert code == "None"
    assert not is_alive(int(pid))
