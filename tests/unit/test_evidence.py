"""Which optimisations are active, read from real logs of three versions; and what is asked for against what is so."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.evidence import Evidence, requested, unmet
from pytest_vllmperf.domain.optimisations import OPTIMISATIONS, gather

DATA = Path(__file__).parents[1] / "adapters" / "data"
METRICS = (
    'vllm:cache_config_info{{block_size="16",cache_dtype="{dtype}",enable_prefix_caching="{prefix}",engine="0",'
    'kv_offloading_backend="native",kv_offloading_size="{size}"}} 1.0\n'
)


def log(name: str) -> str:
    return (DATA / f"{name}.log").read_text(encoding="utf-8")


def found(text: str, **sources: Any) -> dict[str, Evidence]:
    return {e.optimisation: e for e in gather(log=text, args=sources.pop("args", {}), **sources)}


EXPECTED = {
    "vllm-0.14.0-baseline": {
        "V1 engine": ("confirmed", "V1"),
        "attention backend": ("unknown", None),
        "async scheduling": ("refuted", "off"),
        "KV offloading": ("refuted", "off"),
        "KV cache dtype": ("refuted", "auto"),
        "prefix caching": ("confirmed", "on"),
        "chunked prefill": ("confirmed", "on"),
        "quantization": ("refuted", "off"),
        "CUDA graphs": ("refuted", "off"),
        "compilation": ("refuted", "off"),
        "speculative decoding": ("refuted", "off"),
        "tensor parallelism": ("refuted", "1"),
        "sleep mode": ("refuted", "off"),
    },
    "vllm-0.25.1-max-perf": {
        "V1 engine": ("confirmed", "V1"),
        "attention backend": ("confirmed", "FLASH_ATTN"),
        "async scheduling": ("confirmed", "on"),
        "KV offloading": ("confirmed", "native 62 GiB"),
        "KV cache dtype": ("confirmed", "fp8"),
        "prefix caching": ("confirmed", "on"),
        "chunked prefill": ("confirmed", "on"),
        "quantization": ("refuted", "off"),
        "CUDA graphs": ("confirmed", "FULL_AND_PIECEWISE"),
        "compilation": ("confirmed", "VLLM_COMPILE"),
        "speculative decoding": ("refuted", "off"),
        "tensor parallelism": ("refuted", "1"),
        "sleep mode": ("refuted", "off"),
    },
    "vllm-0.32.0-max-perf": {
        "V1 engine": ("confirmed", "V1"),
        "attention backend": ("unknown", None),
        "async scheduling": ("refuted", "off"),
        "KV offloading": ("refuted", "off"),
        "KV cache dtype": ("refuted", "auto"),
        "prefix caching": ("confirmed", "on"),
        "chunked prefill": ("confirmed", "on"),
        "quantization": ("refuted", "off"),
        "CUDA graphs": ("refuted", "off"),
        "compilation": ("refuted", "off"),
        "speculative decoding": ("refuted", "off"),
        "tensor parallelism": ("refuted", "1"),
        "sleep mode": ("refuted", "off"),
    },
}


@pytest.mark.parametrize(("name", "optimisation"), [(n, o) for n in EXPECTED for o in OPTIMISATIONS])
def test_each_optimisation_is_read_from_each_versions_log(name: str, optimisation: str) -> None:
    """O01."""
    evidence = found(log(name))[optimisation]
    assert (evidence.state, evidence.value) == EXPECTED[name][optimisation]
    assert evidence.proof
    assert (evidence.source == "none") == (evidence.state == "unknown")


@pytest.mark.parametrize("optimisation", OPTIMISATIONS)
def test_nothing_is_confirmed_or_refuted_without_a_log(optimisation: str) -> None:
    evidence = found("")[optimisation]
    assert (evidence.state, evidence.value, evidence.source) == ("unknown", None, "none")


def test_sleep_mode_is_proved_by_the_allocator_it_needs() -> None:
    evidence = found(log("vllm-0.25.1-sleep-mode"))["sleep mode"]
    assert evidence.state == "confirmed"
    assert evidence.proof == "APIServer: Enabling cumem allocator because sleep mode requires it."


def test_the_engine_core_has_the_last_word_on_async_scheduling() -> None:
    text = log("vllm-0.14.0-baseline")
    assert "(APIServer pid=5937)\x1b[0;0m INFO 11-23 09:09:49 [vllm.py:630] Asynchronous scheduling is enabled." in text
    assert found(text)["async scheduling"].proof == "EngineCore_DP0: Asynchronous scheduling is disabled."


GPU_032 = (
    "(EngineCore pid=1) INFO 11-23 09:10:46 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
    "model='m', device_config=cuda, enable_prefix_caching=True, enable_chunked_prefill=True, pooler_config=None\n"
)


def test_without_its_line_async_scheduling_is_unknown_whatever_was_asked() -> None:
    """O02."""
    given_line = "(APIServer pid=2) INFO 11-23 09:10:31 [u.py:1] non-default args: {'async_scheduling': True}\n"
    evidence = found(given_line + GPU_032, args={"async-scheduling": True})["async scheduling"]
    assert (evidence.state, evidence.met) == ("unknown", None)
    assert "VLLM_SERVER_DEV_MODE" in evidence.proof


@pytest.mark.parametrize(("value", "state"), [(True, "confirmed"), (False, "refuted")])
def test_the_servers_own_configuration_proves_async_scheduling(value: bool, state: str) -> None:
    info = {"vllm_config": {"scheduler_config": {"async_scheduling": value}}}
    evidence = found(GPU_032, server_info=info)["async scheduling"]
    assert (evidence.state, evidence.source) == (state, "server_info")
    assert evidence.proof == f"/server_info: scheduler_config.async_scheduling={value}"


def test_an_optimisation_turned_off_with_a_warning_is_refuted_by_it() -> None:
    """O03."""
    warning = (
        "(APIServer pid=2) WARNING 11-23 09:10:31 [vllm.py:1606] Async scheduling not supported with medusa-based "
        "speculative decoding and will be disabled.\n"
    )
    evidence = found(warning + GPU_032, args={"async-scheduling": True})["async scheduling"]
    assert (evidence.state, evidence.met) == ("refuted", False)
    assert "medusa" in evidence.proof


def test_sources_that_contradict_each_other_prove_nothing() -> None:
    metrics = METRICS.format(dtype="auto", prefix="False", size="None")
    evidence = found(GPU_032, metrics=metrics)["prefix caching"]
    assert evidence.state == "unknown"
    assert evidence.proof == (
        'EngineCore: enable_prefix_caching=True, but /metrics: cache_config_info enable_prefix_caching="False"'
    )


def test_metrics_alone_prove_the_cache() -> None:
    evidence = found("", metrics=METRICS.format(dtype="fp8", prefix="True", size="62.0"))
    assert (evidence["KV cache dtype"].state, evidence["KV cache dtype"].source) == ("confirmed", "metrics")
    assert evidence["prefix caching"].proof == '/metrics: cache_config_info enable_prefix_caching="True"'


def test_what_was_offloaded_is_part_of_the_proof() -> None:
    metrics = (
        'vllm:kv_offload_store_bytes_total{engine="0"} 2.2e+07\nvllm:kv_offload_store_bytes_total{engine="1"} 10.0\n'
    )
    assert found(log("vllm-0.25.1-max-perf"), metrics=metrics)["KV offloading"].proof.endswith(
        "; stored 22000010 bytes so far"
    )


def test_an_offloading_backend_without_a_size_is_refuted() -> None:
    """O05."""
    text = "non-default args: {'model': 'm', 'kv_offloading_backend': 'native'}\n"
    evidence = found(text)["KV offloading"]
    assert evidence.state == "refuted"
    assert "only the size turns it on" in evidence.proof


@pytest.mark.parametrize(
    ("args", "optimisation", "met"),
    [
        ({"kv-cache-dtype": "fp8"}, "KV cache dtype", True),
        ({"kv-cache-dtype": "fp8_e5m2"}, "KV cache dtype", False),
        ({"kv-cache-dtype": "auto"}, "KV cache dtype", None),
        ({"kv-offloading-size": 62}, "KV offloading", True),
        ({"kv-offloading-size": 32}, "KV offloading", False),
        ({"kv-offloading-backend": "lmcache", "kv-offloading-size": 62}, "KV offloading", False),
        ({"kv-transfer-config": {"kv_connector": "OffloadingConnector"}}, "KV offloading", True),
        ({"attention-backend": "flash_attn"}, "attention backend", True),
        ({"attention-backend": "FLASHINFER"}, "attention backend", False),
        ({"attention-config": {"backend": "FLASH_ATTN"}}, "attention backend", True),
        ({"quantization": "awq"}, "quantization", False),
        ({"tensor-parallel-size": 2}, "tensor parallelism", False),
        ({"tensor-parallel-size": 1}, "tensor parallelism", True),
        ({"speculative-config": {"method": "ngram"}}, "speculative decoding", False),
        ({"speculative-config": '{"model": "m"}'}, "speculative decoding", False),
        ({"enforce-eager": True}, "CUDA graphs", False),
        ({"enforce-eager": True}, "compilation", False),
        ({"compilation-config": {"mode": 3, "cudagraph_mode": "FULL"}}, "compilation", True),
        ({"compilation-config": {"mode": 3, "cudagraph_mode": "NONE"}}, "CUDA graphs", False),
        ({"async-scheduling": True}, "async scheduling", True),
        ({"async-scheduling": False}, "async scheduling", False),
        ({"enable-prefix-caching": True}, "prefix caching", True),
        ({"enable-chunked-prefill": False}, "chunked prefill", False),
        ({"enable-sleep-mode": True}, "sleep mode", False),
        ({"enable-sleep-mode": None}, "sleep mode", None),
    ],
)
def test_what_the_flags_ask_for_is_compared_with_what_is_so(args: dict[str, Any], optimisation: str, met: Any) -> None:
    evidence = found(log("vllm-0.25.1-max-perf"), args=args)
    assert evidence[optimisation].met is met
    others = {name for name, item in evidence.items() if item.requested is not None}
    assert (optimisation in others) == (met is not None)


def test_a_quantization_may_run_on_a_kernel_of_its_own() -> None:
    text = GPU_032.replace("device_config", "quantization=awq_marlin, device_config")
    assert found(text, args={"quantization": "awq"})["quantization"].met is True


def test_speculative_decoding_names_its_method() -> None:
    config = "speculative_config=SpeculativeConfig(method='ngram', model=None, num_spec_tokens=3), device_config"
    evidence = found(GPU_032.replace("device_config", config))["speculative decoding"]
    assert (evidence.state, evidence.value) == ("confirmed", "ngram")


def test_nothing_is_asked_for_by_flags_that_do_not_mention_it() -> None:
    assert requested({"max-model-len": 2048, "gpu-memory-utilization": 0.3}) == {}


def test_only_what_was_asked_for_and_is_refuted_is_unmet() -> None:
    evidence = gather(
        log=log("vllm-0.25.1-max-perf"),
        args={"quantization": "awq", "attention-backend": "FLASHINFER", "async-scheduling": True},
    )
    attention, quantization = unmet(evidence)
    assert quantization == "quantization: asked for awq, but EngineCore: quantization=None"
    assert attention.startswith("attention backend: asked for FLASHINFER, but EngineCore: Using FLASH_ATTN attention")


def test_what_nobody_can_prove_is_unmet_only_where_evidence_is_required() -> None:
    """O02."""
    evidence = gather(log=GPU_032, args={"async-scheduling": True})
    assert unmet(evidence) == ()
    (sentence,) = unmet(evidence, require=True)
    assert sentence.startswith("async scheduling: asked for on, and nothing proves it: this vLLM logs nothing")


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_log_and_no_metrics_make_gathering_fail(text: str, metrics: str) -> None:
    fragments = "(EngineCore pid=1) Initializing a V1 LLM engine (v0.x) with config: " + text
    evidence = gather(log=fragments, args={}, metrics=f"vllm:cache_config_info{{{metrics}}} 1\n{metrics}")
    assert [e.optimisation for e in evidence] == list(OPTIMISATIONS)
