import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.engine import EngineConfig, EngineHandle, StartUp, flags
from pytest_vllmperf.errors import EngineConfigError


def engine(**changes: Any) -> EngineConfig:
    return EngineConfig(**{"name": "baseline", "model": "Qwen/Qwen2.5-7B-Instruct", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "engine name ''"),
        ({"name": "a/b"}, "use letters, digits"),
        ({"model": ""}, "model '' must be a hub id or a path"),
        ({"args": "--enforce-eager"}, "args='--enforce-eager' must be a mapping"),
        ({"args": {"--enforce-eager": True}}, "without leading dashes: 'enforce-eager'"),
        ({"args": {"host": "0.0.0.0"}}, "cannot be set here: engines listen on loopback only"),
        ({"args": {"port": 80}}, "the port is chosen for each launch"),
        ({"args": {"api_key": "x"}}, "a random key is made"),
        ({"args": {"model": "x"}}, r"give it as EngineConfig\(model=…\)"),
        ({"args": {"served_model_name": "x"}}, r"give it as EngineConfig\(served_model_name=…\)"),
        ({"args": {"max-num-seqs": 1, "max_num_seqs": 2}}, "names 'max-num-seqs' twice"),
        ({"cpu_args": {"x": object()}}, r"cpu_args\['x'\]=.* must be a string, number, bool"),
        ({"gpu_args": {"port": 1}}, r"gpu_args\['port'\] cannot be set"),
        ({"env": {"A": 1}}, "names and values must be strings"),
        ({"env": ["A=1"]}, r"env=\['A=1'\] must be a mapping"),
        ({"cpu_env": {1: "x"}}, r"cpu_env\[1\]"),
        ({"command": "vllm serve"}, r"must be a list of arguments, as no shell is used: \['vllm', 'serve'\]"),
        ({"command": ()}, "is empty"),
        ({"requires": ("tpu",)}, "requires='tpu' is unknown; allowed: gpu"),
        ({"gpus": 0}, "gpus=0 must be a whole number, 1 or more"),
        ({"gpus": 1.5}, "gpus=1.5 must be"),
        ({"gpus": "2"}, "gpus='2' must be"),
        ({"startup_timeout_s": 0}, "startup_timeout_s=0 must be above 0"),
        ({"python": "p", "command": ("x",)}, "python='p' and command= name two things to launch; keep one"),
        ({"health_path": "health"}, "health_path='health' must be a path such as '/health'"),
        ({"api_key_env": "sk-123"}, "api_key_env must be the name of an environment variable, never a key"),
        ({"url": "gpu-7:8000"}, "url='gpu-7:8000' must be http:// or https://"),
        ({"url": "http://me:pw@host"}, "without user, path"),
        ({"url": "http://host/v1"}, "without user, path"),
        ({"url": "http://h", "args": {"seed": 1}, "python": "p"}, "is asked, not launched: leave out args, python"),
        ({"startup_timeout_s": "10 s"}, "startup_timeout_s='10 s' must be above 0"),
    ],
)
def test_an_engine_that_cannot_work_is_refused_before_any_launch(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        engine(**changes)


TRAPS = [
    (
        {"enable-chunked-prefill": "True"},
        "'enable-chunked-prefill': 'True' is a string.*write 'enable-chunked-prefill': T",
    ),
    ({"some-new-switch": "false"}, "'some-new-switch': 'false' is a string.*write 'some-new-switch': False"),
    ({"enforce-eager": 1}, "'enforce-eager': 1: the flag is a switch and takes no value"),
    ({"max_num_seq": 9}, "'max-num-seq' is an abbreviation.*write 'max-num-seqs'"),
    ({"tensor-parallel": 2}, "'tensor-parallel' is an abbreviation.*write 'tensor-parallel-size'"),
    (
        {"kv-offloading-backend": "native"},
        "'kv-offloading-backend': 'native' offloads nothing without a size: add 'kv-offloading-size' in GiB",
    ),
    (
        {"kv-offloading-backend": "native", "kv-offloading-size": 0},
        "'kv-offloading-backend': 'native' offloads nothing",
    ),
]


@pytest.mark.parametrize(("args", "message"), TRAPS)
def test_a_flag_that_vllm_takes_and_does_not_do_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineConfigError, match=f"engine 'baseline', as launched on a GPU: {message}"):
        engine(args=args)


def test_traps_are_looked_for_in_the_flags_of_each_device() -> None:
    changes: dict[str, Any] = {"args": {"kv-offloading-backend": "native"}, "gpu_args": {"kv-offloading-size": 62}}
    with pytest.raises(EngineConfigError, match="as launched on a CPU: 'kv-offloading-backend'"):
        engine(**changes)
    assert engine(**changes, requires="gpu").on("gpu").args["kv-offloading-size"] == 62


@pytest.mark.parametrize(
    "args",
    [
        {"enable-chunked-prefill": True, "enforce-eager": False, "async-scheduling": None},
        {"kv-offloading-backend": "native", "kv-offloading-size": 62},
        {"kv-offloading-size": 62},
        {"kv-offloading-backend": None},
        {"max-num-seqs": 9, "quantization": "awq", "max-new-thing": 3},
    ],
)
def test_flags_that_mean_what_they_say_are_taken(args: dict[str, Any]) -> None:
    assert dict(engine(args=args).args) == args


def test_flags_of_another_server_are_its_own_affair() -> None:
    args = {"max-num-seq": "true"}
    for other in (("llama-server",), ("/home/me/vllm/bin/python", "server.py")):
        assert dict(engine(args=args, command=other).args) == args
    for own in (("/opt/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"), ("/opt/env/bin/vllm", "serve")):
        with pytest.raises(EngineConfigError, match="abbreviation"):
            engine(args=args, command=own)


@pytest.mark.parametrize(
    ("model", "served", "name"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", None, "Qwen/Qwen2.5-7B-Instruct"),
        ("/srv/models/tinymath", None, "tinymath"),
        ("./suites/models/tinymath/", None, "tinymath"),
        ("~/models/x", None, "x"),
        ("/srv/models/tinymath", "other", "other"),
    ],
)
def test_the_model_goes_by_its_hub_id_or_the_last_part_of_its_path(model: str, served: str | None, name: str) -> None:
    assert engine(model=model, served_model_name=served).model_name == name


def test_device_flags_replace_general_ones_at_launch_and_none_stay_open() -> None:
    config = engine(
        args={"max-num-seqs": 64, "enforce_eager": True},
        cpu_args={"max_num_seqs": 8},
        gpu_args={"kv-cache-dtype": "fp8"},
        env={"A": "1"},
        cpu_env={"A": "2", "B": "3"},
    )
    cpu, gpu = config.on("cpu"), config.on("gpu")
    assert dict(cpu.args) == {"max-num-seqs": 8, "enforce-eager": True}
    assert dict(gpu.args) == {"max-num-seqs": 64, "enforce-eager": True, "kv-cache-dtype": "fp8"}
    assert (dict(cpu.env), dict(gpu.env)) == ({"A": "2", "B": "3"}, {"A": "1"})
    assert cpu.on("gpu") == cpu


def test_an_engine_cannot_be_changed_after_it_was_made() -> None:
    given = {"max-num-seqs": 64}
    config = engine(args=given)
    given["max-num-seqs"] = 1
    assert config.args["max-num-seqs"] == 64
    with pytest.raises(TypeError):
        config.args["max-num-seqs"] = 2  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"  # type: ignore[misc]


def test_a_single_requirement_may_be_written_as_a_string() -> None:
    assert engine(requires="gpu").requires == ("gpu",)


@pytest.mark.parametrize(
    ("args", "rendered"),
    [
        ({"max-model-len": 2048}, ("--max-model-len", "2048")),
        ({"enforce-eager": True}, ("--enforce-eager",)),
        ({"async-scheduling": False}, ("--no-async-scheduling",)),
        ({"quantization": None}, ()),
        ({"gpu-memory-utilization": 0.85}, ("--gpu-memory-utilization", "0.85")),
        ({"middleware": ["a", 1, True]}, ("--middleware", "a", "1", "true")),
        ({"compilation-config": {"b": 1, "a": [True]}}, ("--compilation-config", '{"a": [true], "b": 1}')),
    ],
)
def test_flags_are_rendered_the_way_vllm_reads_them(args: dict[str, Any], rendered: tuple[str, ...]) -> None:
    assert flags(args) == rendered


JSON = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.booleans(), max_size=2)
FLAG = st.sampled_from(["compilation-config", "hf-overrides", "speculative-config"])


@given(st.dictionaries(FLAG, st.dictionaries(st.text(max_size=5), JSON, max_size=3)))
def test_a_dict_reaches_the_engine_as_the_json_it_was(args: dict[str, Any]) -> None:
    rendered = flags(args)
    pairs = zip(rendered[::2], rendered[1::2], strict=True)
    assert {flag.removeprefix("--"): json.loads(value) for flag, value in pairs} == args


def test_a_handle_never_shows_its_key() -> None:
    handle = EngineHandle(
        config=engine(),
        device="cpu",
        base_url="http://127.0.0.1:1",
        model_name="m",
        api_key="secret-key",
        pid=1,
        command=("x",),
        log_path="x.log",
        version=None,
        start_up=StartUp(time_to_ready_ns=1, first_request_ttft_ns=1, cold=None),
    )
    assert "secret-key" not in repr(handle)
    assert handle.name == "baseline"
