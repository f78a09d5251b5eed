"""Another server than vLLM for real: llama.cpp's own, on the bundled model (seconds; the package xllamacpp has it)."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_model import gguf_model
from test_pool import CPU

from pytest_vllmperf.adapters.control_client import ControlClient
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.quality import QualityTask
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS
from pytest_vllmperf.domain.workload import FillContext, Workload
from pytest_vllmperf.errors import TaskUnavailable
from pytest_vllmperf.evaluation import evaluate
from pytest_vllmperf.measurement import measure, resolved, start_up_summary
from pytest_vllmperf.pool import EnginePool
from pytest_vllmperf.proof import prove

pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with the package xllamacpp")
pytest.importorskip("gguf")

BUNDLED = Path(__file__).parents[1] / "suites" / "models" / "tinymath"
SERVER = str(Path(__file__).with_name("llama_cpp.py"))
FLAGS = ("-m", "{model}", "--host", "{host}", "--port", "{port}", "--alias", "{model_name}")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama-cpp")
    config = EngineConfig(
        name="llama-cpp",
        model=str(gguf_model(BUNDLED, folder / "tinymath.gguf")),
        served_model_name="tinymath",
        command=(sys.executable, SERVER, *FLAGS),
        api_key_env="LLAMA_API_KEY",
        args={"parallel": 4, "metrics": True},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLMPERF_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))
        pool = EnginePool(engines={"llama-cpp": config}, environment=CPU, directory=folder / "logs")
        yield pool
        pool.close()


@pytest.fixture(scope="module")
def handle(pool):
    return pool.acquire("llama-cpp")


def test_it_is_ready_once_it_streams_and_only_with_its_key(handle):
    ready_s = start_up_summary(handle).metrics["time_to_ready"].value
    print(f"ready after {ready_s:.2f} s")  # -rP shows it
    assert "llama.cpp" in Path(handle.log_path).read_text()
    assert handle.api_key not in " ".join(handle.command)
    with ControlClient(handle.base_url) as stranger:
        assert stranger.is_healthy()
        with pytest.raises(Exception, match="401"):
            stranger.first_token("tinymath")


def test_a_load_run_is_measured_whole(handle):
    """Prompts are drawn from the vocabulary the server tells: a GGUF file has no config.json."""
    summary = measure(handle, Workload(name="few", input_tokens=64, output_tokens=32, requests=20, max_concurrency=4))
    assert (summary.completed, summary.failures) == (20, {})
    assert [why for why in summary.invalid if "the client was the bottleneck" not in why] == []  # a busy machine
    assert "the server closes its connections after each answer: every request had a new one" in summary.warnings
    for name in ("ttft_mean", "tpot_mean", "output_throughput", "host_memory_peak"):
        print(f"{name} = {summary.metrics[name].value:.4g}")
        assert summary.metrics[name].value > 0


def test_a_prompt_fills_the_context_the_server_tells(handle):
    workload = Workload(name="full", output_tokens=4, requests=1, max_concurrency=1, prompts=FillContext(share=0.5))
    assert resolved(workload, handle).input_tokens == 1024  # 8192 for four slots


def test_its_answers_are_judged_as_vllms(handle):
    task = replace(BUILT_IN_TASKS["tinymath"], questions=60, data=str(BUNDLED / "test.jsonl"))
    summary = evaluate(handle, task)
    print(f"accuracy = {summary.metrics['accuracy'].value:.3f}")
    assert summary.invalid == ()
    assert summary.metrics["accuracy"].value >= 0.75
    assert summary.metrics["error_rate"].value == 0


def test_tasks_that_compare_log_likelihoods_are_refused_with_the_reason(handle, tmp_path):
    choices = [{"text": [str(n), str(n + 1)], "label": ["A", "B"]} for n in range(20)]
    rows = [{"question": f"{n} + 1", "choices": choice, "answerKey": "B"} for n, choice in enumerate(choices)]
    (tmp_path / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = QualityTask(
        name="choices",
        lm_eval_task="arc_easy",
        filter="none",
        metric="acc",
        oracle=None,
        data=str(tmp_path),
        questions=10,
        shots=0,
    )
    with pytest.raises(
        TaskUnavailable, match=r"'choices' compares log-likelihoods .* gives none .*llama\.cpp's server"
    ):
        evaluate(handle, task)


def test_vllms_optimisations_are_not_looked_for(handle):
    assert prove(handle).evidence == ()


def test_it_stops_and_leaves_nothing(pool, handle):
    pool.ensure_alive("llama-cpp", serves=True)
    pool.release("llama-cpp")
    with ControlClient(handle.base_url) as control:
        assert not control.is_healthy()
