"""The guardian with real process trees: whoever is killed, nothing is left; whoever is a stranger, stays."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from traces import PATIENCE_S, STUBBORN, no_trace_afterwards, traces_in, until

from pytest_vllmperf.adapters import engine_process, engine_state
from pytest_vllmperf.adapters.engine_process import EngineProcess
from pytest_vllmperf.errors import EngineError

OWNER = """
import os, signal, sys, time
from pathlib import Path
from pytest_vllmperf.adapters.engine_process import EngineProcess
folder, end, *command = sys.argv[1:]
process = EngineProcess(
    command, env=dict(os.environ), log_path=Path(folder, "engine.log"), state_path=Path(folder, "notes", "1.json")
)
if end == "forked child lives on":
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    Path(folder, "forked").write_text(str(pid))
while not list(Path(folder).glob("*.json")):
    time.sleep(0.01)
process.take_stock()
Path(folder, "noted").touch()
if end == "_exit":
    Path(folder, "left_at").write_text(str(time.monotonic()))
    os._exit(0)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notes").mkdir()
    with no_trace_afterwards(tmp_path):
        yield tmp_path


@pytest.fixture
def start(folder):
    """Start a stubborn engine here, or any source; stopped afterwards."""
    started = []

    def launch(*command, state_path=None):
        command = command or (*STUBBORN, str(folder))
        process = EngineProcess(
            command,
            env=dict(os.environ),
            log_path=folder / "engine.log",
            state_path=state_path or folder / "notes" / "1.json",
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.stop(grace_s=0.0)


@contextlib.contextmanager
def owner(folder, end=""):
    """A process that owns a stubborn engine."""
    with subprocess.Popen((sys.executable, "-c", OWNER, str(folder), end, *STUBBORN, str(folder))) as process:
        try:
            yield process
        finally:
            process.kill()


# ---------------------------------------------------------------------- the owner ends


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_two_seconds_after_the_owner_was_killed(folder, number):
    """L01, L04, L05, L08, L11."""
    with owner(folder) as process:
        (traces,) = traces_in(folder)
        process.send_signal(number)
        traces.assert_gone(time.monotonic())
    until(lambda: not (folder / "notes" / "1.json").exists())


def test_nothing_is_left_two_seconds_after_the_owner_left_by_the_back_door(folder):
    """L06: ``os._exit`` runs no clean-up of the owner's own."""
    with owner(folder, "_exit"):
        (traces,) = traces_in(folder)
        left_at = until(lambda: (folder / "left_at").exists() and (folder / "left_at").read_text())
        traces.assert_gone(float(left_at))


def test_a_forked_child_of_the_owner_keeps_no_engine_alive(folder):
    """L16: a fork without exec inherits the lifeline whatever its flags."""
    with owner(folder, "forked child lives on") as process:
        (traces,) = traces_in(folder)
        forked = psutil.Process(int(until(lambda: (folder / "forked").exists() and (folder / "forked").read_text())))
        process.kill()
        traces.assert_gone(time.monotonic())
        assert forked.is_running()
        forked.kill()


def test_polite_signals_do_not_end_the_guardian(start, folder):
    process = start()
    (traces,) = traces_in(folder)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for name in ("guardian", "witness"):
            traces.processes[name].send_signal(number)
    process.take_stock()  # answered after the signals
    assert set(traces.alive()) == set(traces.processes)
    assert not process.lost_guardian


# ---------------------------------------------------------------------- the guardian ends


@pytest.mark.parametrize("half", ["guardian", "witness"])
def test_when_half_of_the_guardian_is_killed_the_other_ends_the_engine_at_once(start, folder, half):
    """L09."""
    process = start()
    (traces,) = traces_in(folder)
    since = traces.kill(half)
    traces.assert_gone(since)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert process.lost_guardian == (half == "guardian")


def test_an_engine_whose_guardian_was_killed_whole_ends_with_it_and_stopping_ends_the_rest(start, folder):
    process = start()
    (traces,) = traces_in(folder)
    process.take_stock()
    traces.kill("guardian", "witness")
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert process.lost_guardian
    until(lambda: not traces.alive("leader", "guardian", "witness"))
    assert traces.alive() == ["in_group", "escaped"]
    process.stop()
    assert traces.left() == []


def test_a_suspended_guardian_does_not_stop_the_stopping(start, folder, monkeypatch):
    monkeypatch.setattr(engine_process, "_ANSWER_S", 0.1)
    monkeypatch.setattr(engine_process, "_KILL_DEADLINE_S", 0.1)
    process = start()
    (traces,) = traces_in(folder)
    process.take_stock()
    for name in ("guardian", "witness"):
        traces.processes[name].suspend()
    process.stop(grace_s=0.0)
    assert traces.left() == []


def test_what_a_leader_that_left_politely_leaves_behind_is_ended_by_stopping(start, folder):
    """L14, and no stock was ever taken."""
    source = f"import subprocess, sys; subprocess.Popen({[*STUBBORN, str(folder)]!r}, start_new_session=True)"
    process = start(sys.executable, "-c", source)
    assert process.wait(PATIENCE_S) == 0
    (traces,) = traces_in(folder)
    process.stop(grace_s=0.0)
    assert traces.left() == []


def test_notes_that_cannot_be_written_disturb_nothing(start, folder):
    process = start(state_path=folder / "no-such-folder" / "state")
    (traces,) = traces_in(folder)
    process.take_stock()
    process.stop(grace_s=0.0)
    assert traces.left() == []


def test_a_guardian_that_cannot_work_is_named(folder, monkeypatch):
    (folder / "broken.py").write_text("raise SystemExit('no guardian today')")
    monkeypatch.setattr(engine_process, "_GUARDIAN", folder / "broken.py")
    with pytest.raises(EngineError, match=r"the guardian that should start it ended, .*engine\.log"):
        EngineProcess((sys.executable,), env={}, log_path=folder / "engine.log")
    assert (folder / "engine.log").read_text().strip() == "no guardian today"


def test_a_command_no_program_can_be_given_is_refused(folder):
    with pytest.raises(EngineError, match=r"cannot run .*Invalid argument"):
        EngineProcess((sys.executable, "-c", "a\0b"), env={}, log_path=folder / "engine.log")


def test_neither_notes_nor_command_line_hold_the_environment(folder, start, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    process = start()
    (traces,) = traces_in(folder)
    process.take_stock()
    assert (folder / "notes" / "1.json").stat().st_mode & 0o777 == 0o600
    state = (folder / "notes" / "1.json").read_text()
    assert set(json.loads(state)["processes"]) >= {str(traces.pids[n]) for n in ("leader", "in_group", "escaped")}
    lines = " ".join(" ".join(traces.processes[name].cmdline()) for name in ("guardian", "witness"))
    assert "very-secret" not in state + lines


BRIEF = """
import mmap, os, time
from pathlib import Path
shared = Path("/dev/shm", f"psm_vllmperf_{os.getpid()}")
with shared.open("wb+") as file:
    file.truncate(4096)
    block = mmap.mmap(file.fileno(), 4096)
print(shared, os.environ["TMPDIR"], flush=True)
time.sleep(60)
"""


def test_fifty_launches_leave_no_zombie_no_descriptor_and_no_shared_memory(folder):
    """L18."""

    def descriptors():
        return sorted(str(link) for link in Path("/proc/self/fd").iterdir())

    def left_by_one():
        process = EngineProcess((sys.executable, "-S", "-c", BRIEF), env={}, log_path=folder / "brief.log")
        names = until(lambda: process.log_path.read_text().endswith("\n") and process.log_path.read_text().split())
        assert all(Path(name).exists() for name in names)
        process.stop()
        return [name for name in names if Path(name).exists()]

    assert left_by_one() == []
    before = descriptors()
    assert [left_by_one() for _ in range(50)] == [[]] * 50
    assert descriptors() == before
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


# ---------------------------------------------------------------------- the next run


@pytest.fixture
def abandoned(folder):
    """A stubborn tree whose owner and whose whole guardian were killed: traces and the folder of its notes."""
    with owner(folder) as process:
        (traces,) = traces_in(folder)
        until((folder / "noted").exists)
        traces.processes["owner"] = psutil.Process(process.pid)
        traces.kill("owner", "guardian", "witness")
    until(lambda: not traces.alive("leader", "owner", "guardian", "witness"))
    assert traces.alive() == ["in_group", "escaped"]
    return traces, folder / "notes"


def test_the_next_run_ends_what_was_left(abandoned):
    """L10."""
    traces, notes = abandoned
    since = time.monotonic()
    (leftover,) = engine_state.reap_leftovers(notes)
    traces.assert_gone(since)
    assert leftover.killed == tuple(sorted(traces.pids[name] for name in ("in_group", "escaped")))
    assert leftover.survivors == ()
    assert list(notes.iterdir()) == []
    assert engine_state.reap_leftovers(notes) == ()


def test_notes_that_make_no_sense_keep_no_others_from_being_ended(abandoned):
    traces, notes = abandoned
    (noted,) = notes.glob("*.json")
    state = json.loads(noted.read_text())
    (notes / "0.json").write_text(json.dumps({**state, "guardians": {}, "processes": {"-1": {}}, "temporary": 7}))
    (leftover,) = engine_state.reap_leftovers(notes)
    assert leftover.killed == tuple(sorted(traces.pids[name] for name in ("in_group", "escaped")))
    assert traces.left() == []


def test_a_member_nobody_noted_is_known_by_a_noted_one_in_its_group(abandoned):
    traces, notes = abandoned
    rewrite(notes, lambda state: state["processes"].pop(str(traces.pids["in_group"])))
    with joined(traces) as member:
        rewrite(notes, lambda state: state["processes"].update({str(member): start_of(member)}))
        engine_state.reap_leftovers(notes)
    assert traces.left() == []


def test_a_stranger_that_got_a_noted_number_is_left_alone(abandoned):
    """L17."""
    traces, notes = abandoned
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE, process_group=0) as stranger:
        rewrite(notes, lambda state: state["processes"].update({str(stranger.pid): start_of(stranger.pid) - 1}))
        rewrite(notes, lambda state: state.update(leader=stranger.pid))
        (leftover,) = engine_state.reap_leftovers(notes)
        assert stranger.poll() is None
        assert stranger.pid not in leftover.killed
        stranger.kill()
    assert traces.left() == []


def test_what_somebody_guards_is_left_alone(start, folder):
    notes = folder / "notes"
    process = start()
    (traces,) = traces_in(folder)
    process.take_stock()
    assert engine_state.reap_leftovers(notes) == ()
    assert set(traces.alive()) == set(traces.processes)


@pytest.mark.parametrize(("name", "files_left"), [("boot_id", False), ("pid_namespace", True)])
def test_numbers_of_another_boot_or_container_mean_nothing(abandoned, name, files_left):
    traces, notes = abandoned
    rewrite(notes, lambda state: state.update({name: "another"}))
    assert engine_state.reap_leftovers(notes) == ()
    assert traces.alive() == ["in_group", "escaped"]
    assert [file.exists() for file in traces.files] == [files_left, files_left]
    assert bool(list(notes.iterdir())) == files_left


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"processes": 3}'])
def test_a_file_that_is_no_state_is_ignored(folder, text):
    (folder / "notes" / "1.json").write_text(text)
    assert engine_state.reap_leftovers(folder / "notes") == ()


def rewrite(notes, change):
    path = notes / "1.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def start_of(pid):
    """Clock ticks since boot at which ``pid`` was started."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@contextlib.contextmanager
def joined(traces):
    """One more process in the engine's group."""
    with subprocess.Popen(
        (sys.executable, "-c", "import time; time.sleep(60)"), process_group=traces.pids["leader"]
    ) as more:
        try:
            yield more.pid
        finally:
            more.kill()


# ---------------------------------------------------------------------- where notes are kept


def test_notes_are_kept_in_a_private_folder_of_the_session(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = engine_state.runtime_directory()
    assert folder == tmp_path / "pytest-vllmperf"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert engine_state.runtime_directory() == folder
    assert engine_state.new_state_path(folder).parent == folder


@pytest.mark.parametrize("session", ["", "/no/such/folder"])
def test_without_a_session_folder_they_are_kept_beside_temporary_files(tmp_path, monkeypatch, session):
    monkeypatch.setenv("XDG_RUNTIME_DIR", session)
    monkeypatch.setattr(engine_state.tempfile, "gettempdir", lambda: str(tmp_path))
    assert engine_state.runtime_directory() == tmp_path / f"pytest-vllmperf-{os.getuid()}"


@pytest.mark.parametrize("kind", ["writable", "link"])
def test_a_folder_others_could_have_prepared_is_refused(tmp_path, monkeypatch, kind):
    """V10, X07."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "pytest-vllmperf"
    if kind == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match=r"must be a folder of user .* set XDG_RUNTIME_DIR"):
        engine_state.runtime_directory()
