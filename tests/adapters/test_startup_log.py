"""Causes, hints, phases and cold starts, read from real logs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.adapters.startup_log import (
    LogFollower,
    compiled_cold,
    describe_exit_code,
    describe_failure,
    find_cause,
    phase,
    port_was_taken,
    read_log,
    tail,
    warnings_in,
)

DATA = Path(__file__).parent / "data"


def log(name: str) -> str:
    return (DATA / f"{name}.log").read_text(encoding="utf-8")


def test_the_cause_is_the_engine_cores_exception_not_what_the_api_server_says_about_it():
    cause = find_cause(log("vllm-0.14.0-hma"))
    assert cause is not None
    assert cause.line == (
        "ValueError: Connector OffloadingConnector does not support HMA but HMA is enabled. "
        "Please set `--disable-hybrid-kv-cache-manager`."
    )
    assert cause.hint is not None
    assert '{"disable-hybrid-kv-cache-manager": True}' in cause.hint


def test_the_cause_is_the_workers_exception_where_the_api_server_names_no_process():
    cause = find_cause(log("vllm-0.32.0-offload-on-cpu"))
    assert cause is not None
    assert cause.line == "Exception: CPU Offloading is currently only supported on CUDA-alike and XPU GPUs"
    assert cause.hint is not None
    assert "gpu_args" in cause.hint


def test_an_engine_core_killed_from_outside_leaves_only_the_api_servers_word():
    cause = find_cause(log("vllm-0.32.0-core-killed"))
    assert cause is not None
    assert cause.line.startswith("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.")
    assert cause.hint is not None
    assert "somebody killed it" in cause.hint


def test_an_unknown_flag_is_named():
    cause = find_cause(log("vllm-0.14.0-unknown-flag"))
    assert cause is not None
    assert cause.line == "api_server.py: error: unrecognized arguments: --num-scheduler-steps"
    assert cause.hint is not None
    assert 'remove "num-scheduler-steps" from args' in cause.hint


def test_a_message_of_several_lines_is_read_to_its_end():
    cause = find_cause(log("vllm-0.14.0-max-model-len"))
    assert cause is not None
    assert cause.line.startswith(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value"
    )
    assert "For further information" not in cause.line
    assert cause.hint is not None
    assert 'lower args["max-model-len"] from 99999 to 2048' in cause.hint


@pytest.mark.parametrize("name", ["vllm-0.32.0-eager", "vllm-0.25.1-cold", "vllm-0.25.1-warm"])
def test_a_healthy_engine_has_no_cause(name):
    assert find_cause(log(name)) is None


def test_a_warning_that_quotes_an_error_is_no_cause():
    text = "WARNING 11-23 09:11:30 [system_utils.py:255] This can cause errors like `OSError: [Errno 24]`"
    assert find_cause(text) is None


def test_a_traceback_logged_as_a_warning_gives_way_to_the_one_that_ended_the_process():
    text = """\
(EngineCore pid=7) WARNING 01-01 00:00:00 [x.py:1] Traceback (most recent call last):
(EngineCore pid=7) WARNING 01-01 00:00:00 [x.py:1]   File "x.py", line 1, in load
(EngineCore pid=7) WARNING 01-01 00:00:00 [x.py:1] ImportError: optional part is missing
(EngineCore pid=7) ERROR 01-01 00:00:01 [core.py:1] Traceback (most recent call last):
(EngineCore pid=7) ERROR 01-01 00:00:01 [core.py:1]   File "core.py", line 1, in run
(EngineCore pid=7) ERROR 01-01 00:00:01 [core.py:1] torch.OutOfMemoryError: CUDA out of memory.
"""
    cause = find_cause(text)
    assert cause is not None
    assert cause.line == "torch.OutOfMemoryError: CUDA out of memory."


def test_processes_that_write_at_the_same_time_are_told_apart():
    text = """\
(Worker pid=1) ERROR 01-01 00:00:00 [w.py:1] Traceback (most recent call last):
(Worker pid=2) ERROR 01-01 00:00:00 [w.py:1] Traceback (most recent call last):
(Worker pid=1) ERROR 01-01 00:00:00 [w.py:1]   File "w.py", line 1, in run
(Worker pid=2) ERROR 01-01 00:00:00 [w.py:1]   File "w.py", line 1, in run
(Worker pid=1) ERROR 01-01 00:00:00 [w.py:1] ValueError: first
(Worker pid=2) ERROR 01-01 00:00:00 [w.py:1] ValueError: second
"""
    cause = find_cause(text)
    assert cause is not None
    assert cause.line == "ValueError: first"


def test_without_a_traceback_the_last_words_of_the_interpreter_are_the_cause():
    cause = find_cause("/usr/bin/python3: No module named vllm.entrypoints\n")
    assert cause is not None
    assert cause.line == "/usr/bin/python3: No module named vllm.entrypoints"
    assert cause.hint is not None
    assert "install vllm" in cause.hint


TAKEN = [
    "OSError: [Errno 98] Address already in use",
    "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8150): address already in use",
]


@pytest.mark.parametrize("line", TAKEN)
def test_a_taken_port_is_recognised(line):
    assert port_was_taken(f"Traceback (most recent call last):\n  File x\n{line}\n")


def test_a_taken_port_is_not_seen_in_a_healthy_log():
    assert not port_was_taken(log("vllm-0.32.0-eager"))


@pytest.mark.parametrize(
    ("name", "cold"), [("vllm-0.25.1-cold", True), ("vllm-0.25.1-warm", False), ("vllm-0.32.0-eager", None)]
)
def test_cold_and_warm_starts_are_told_apart(name, cold):
    assert compiled_cold(log(name)) is cold


def test_the_latest_phase_counts():
    text = log("vllm-0.25.1-cold")
    assert phase(text) == "starting the API server"
    assert phase(text[: text.index("Graph capturing finished")]) == "capturing graphs"
    assert phase(text[: text.index("torch.compile took")]) == "compiling"
    assert phase("nothing known\n") is None


def test_the_tail_shows_what_was_said_last_without_colours_bars_and_noise():
    text = "one\n\x1b[0;36m(APIServer pid=5)\x1b[0;0m two\nbar 1%\rbar 100%\n\nnanobind: leaked 64 types!\n"
    assert tail(text) == ("one", "(APIServer pid=5) two", "bar 100%")
    assert len(tail("\n".join(str(i) for i in range(40)))) == 15


def test_a_failure_reads_headline_cause_hint_log_and_last_lines():
    path = DATA / "vllm-0.14.0-unknown-flag.log"
    message = describe_failure("engine 'max-perf' ended with code 2", log_path=path)
    lines = message.splitlines()
    assert lines[0] == "engine 'max-perf' ended with code 2"
    assert lines[1] == "  cause: api_server.py: error: unrecognized arguments: --num-scheduler-steps"
    assert lines[2].startswith("  hint:  multi-step scheduling (--num-scheduler-steps) went with the V0 engine")
    assert lines[3] == f"  log:   {path}, its last lines:"
    assert len(lines) == 4 + 15


def test_an_unknown_failure_shows_the_engine_cores_traceback_not_the_tail_of_the_api_server(tmp_path):
    path = tmp_path / "engine.log"
    path.write_text(
        "(EngineCore pid=7) ERROR 01-01 00:00:01 [core.py:1] Traceback (most recent call last):\n"
        '(EngineCore pid=7) ERROR 01-01 00:00:01 [core.py:1]   File "core.py", line 1, in run\n'
        "(EngineCore pid=7) ERROR 01-01 00:00:01 [core.py:1] ValueError: nobody has seen this before\n"
        "(APIServer pid=6) Traceback (most recent call last):\n"
        '(APIServer pid=6)   File "api.py", line 2, in main\n'
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert describe_failure("engine failed", log_path=path).splitlines() == [
        "engine failed",
        "  cause: ValueError: nobody has seen this before",
        f"  log:   {path}, the traceback:",
        "    Traceback (most recent call last):",
        '      File "core.py", line 1, in run',
        "    ValueError: nobody has seen this before",
    ]


def test_a_running_engines_warnings_are_told_once_with_advice():
    line = "WARNING 01-01 00:00:00 [interface.py:1458] Unknown vLLM environment variable detected: VLLM_USE_V1"
    (warning,) = warnings_in(f"{line}\n(Worker pid=3) {line}\n")
    assert warning.startswith("Unknown vLLM environment variable detected: VLLM_USE_V1: vLLM ignores VLLM_USE_V1")


@pytest.mark.parametrize("name", ["vllm-0.32.0-eager", "vllm-0.25.1-cold", "vllm-0.25.1-warm"])
def test_a_healthy_log_warns_of_nothing(name):
    assert warnings_in(log(name)) == ()


def test_a_failure_never_shows_the_key(tmp_path):
    path = tmp_path / "engine.log"
    path.write_text("ValueError: bad key s3cret-key\n")
    assert "s3cret-key" not in describe_failure("engine failed", log_path=path, secret="s3cret-key")


def test_an_empty_log_is_said_to_be_empty(tmp_path):
    message = describe_failure("engine failed", log_path=tmp_path / "none.log")
    assert message == f"engine failed\n  cause: the log names none\n  log:   {tmp_path / 'none.log'} (empty)"


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "code 0"), (2, "code 2"), (-9, "SIGKILL (often the kernel, out of memory)"), (-15, "SIGTERM")],
)
def test_exit_codes_are_put_into_words(code, words):
    assert describe_exit_code(code) == words


def test_a_follower_reads_each_line_once(tmp_path):
    path = tmp_path / "engine.log"
    follower = LogFollower(path)
    assert follower.new_text() == ""
    path.write_text("one\n")
    assert follower.new_text() == "one\n"
    with path.open("a") as more:
        more.write("two\n")
    assert follower.new_text() == "two\n"
    assert follower.new_text() == ""


def test_of_a_huge_log_beginning_and_end_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pytest_vllmperf.adapters.startup_log._READ_AT_MOST", 100)
    path = tmp_path / "engine.log"
    path.write_text("first\n" + "x" * 1000 + "\nlast\n")
    text = read_log(path)
    assert text.startswith("first\n")
    assert text.endswith("\nlast\n")
    assert len(text) < 200


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_whatever_the_log_holds_reading_it_does_not_fail(text):
    find_cause(text)
    phase(text)
    tail(text)
    port_was_taken(f"Traceback (most recent call last):\n{text}")
