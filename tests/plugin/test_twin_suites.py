"""A shape twin is measured like any model; its answers are not evaluated, and the report says what it is."""

import json

from pytest_vllmperf.adapters.shape_twins import write_twin

SUITE = """
from pytest_vllmperf import BUILT_IN_TASKS

def test_speed(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean", "output_throughput")

def test_answers(vllm_evaluate):
    vllm_evaluate(BUILT_IN_TASKS["gsm8k"])
"""


def test_a_twin_is_measured_and_not_evaluated(project):
    twin = project.path / "twin"
    (project.path / "config.json").write_text(
        json.dumps({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 4000})
    )
    write_twin(str(project.path / "config.json"), twin)
    project.write(suite=SUITE, engines=[{"name": "one", "model": str(twin)}])
    result = project.run("-rs")
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*is a shape twin of *: its weights are dummies, its answers mean nothing*"])
    (engine,) = project.report["engines"]
    assert any("dummy weights; speed and memory are real" in warning for warning in engine["warnings"])
    assert "dummy weights" in (project.path / "reports/latest/report.md").read_text()
