"""Evidence from a live (fake) engine: its log, its metrics, its own configuration."""

import json
from pathlib import Path

import pytest

from pytest_vllmperf import EngineConfig
from pytest_vllmperf.adapters.environment import gather_environment
from pytest_vllmperf.pool import EnginePool
from pytest_vllmperf.proof import prove

DATA = Path(__file__).parent / "adapters" / "data"


@pytest.fixture
def launch(tmp_path, fake_command):
    """Start a fake engine; gives its handle."""
    pools = []

    def start(**changes):
        environment = gather_environment(tmp_path, gpus=(), driver=None)
        config = EngineConfig(name="one", model="fake-model", command=fake_command, **changes)
        pools.append(EnginePool(engines={"one": config}, environment=environment, directory=tmp_path))
        return pools[-1].acquire("one")

    yield start
    for pool in pools:
        pool.close()


def test_log_and_server_info_of_a_live_engine_are_read_together(launch):
    info = {"vllm_config": {"scheduler_config": {"async_scheduling": True, "enable_chunked_prefill": True}}}
    log = DATA / "vllm-0.25.1-max-perf.log"
    handle = launch(
        args={
            "fake-log": str(log),
            "fake-server-info": json.dumps(info),
            "kv-cache-dtype": "fp8",
            "quantization": "awq",
        }
    )
    found = {item.optimisation: item for item in prove(handle).evidence}
    assert (found["KV cache dtype"].met, found["quantization"].met) == (True, False)
    assert found["KV offloading"].value == "native 62 GiB"
    assert found["async scheduling"].state == "confirmed"


def test_an_engine_that_is_not_vllm_proves_nothing(launch):
    proof = prove(launch(args={"async-scheduling": True}))
    assert {item.state for item in proof.evidence} == {"unknown"}
    assert proof.warnings == ()


def test_neither_proof_nor_warning_holds_a_secret(launch, tmp_path):
    log = tmp_path / "said.log"
    log.write_text(
        "(EngineCore pid=1) INFO 01-01 00:00:00 [x.py:1] Creating v1 connector with name: S3 at hf-secret-token\n"
        "WARNING 01-01 00:00:00 [x.py:1] Turning off hybrid kv cache manager because hf-secret-token said so\n"
    )
    proof = prove(launch(args={"fake-log": str(log)}, env={"HF_TOKEN": "hf-secret-token"}))
    assert "hf-secret-token" not in repr(proof)
    (warning,) = proof.warnings
    assert "because [redacted] said so" in warning
