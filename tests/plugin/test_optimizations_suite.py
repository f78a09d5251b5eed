"""The suite that asks for proof: what fails, what is only shown, and what the report says."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = (ROOT / "suites" / "test_optimizations.py").read_text(encoding="utf-8")
ENGINE = "Initializing a V1 LLM engine (v0.32.0) with config: model='m', device_config=cuda, "
LOG = (
    "WARNING 01-01 00:00:00 [x.py:1] Unknown vLLM environment variable detected: VLLM_USE_V1\n"
    f"(EngineCore pid=1) INFO 01-01 00:00:00 [core.py:1] {ENGINE}quantization=None, enable_prefix_caching=True\n"
)


def test_only_what_is_refuted_fails_and_what_is_unknown_only_where_evidence_is_required(project):
    asynchronous = {"fake-log": "said.log", "async-scheduling": True}
    project.write(
        engines=[
            {"name": "proved", "args": {"fake-log": "said.log", "enable-prefix-caching": True}},
            {"name": "refuted", "args": {"fake-log": "said.log", "quantization": "awq"}},
            {"name": "unknown", "args": asynchronous},
            {"name": "required", "args": asynchronous, "require_evidence": True},
        ],
        suite=SUITE,
        files={"said.log": LOG},
    )
    result = project.run("--vllmperf-record-only", "-v")
    assert result.ret == 1
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*test_what_was_asked_for_is_active?refuted?*FAILED*",
            "*test_what_was_asked_for_is_active?required?*FAILED*",
            "*quantization: asked for awq, but EngineCore: quantization=None*",
            "*async scheduling: asked for on, and nothing proves it: *VLLM_SERVER_DEV_MODE*",
        ]
    )
    engines = {engine["name"]: engine for engine in project.report["engines"]}
    prefix_caching = next(e for e in engines["proved"]["evidence"] if e["optimisation"] == "prefix caching")
    assert prefix_caching == {
        "optimisation": "prefix caching",
        "state": "confirmed",
        "value": "on",
        "requested": "on",
        "proof": "EngineCore: enable_prefix_caching=True",
        "source": "log",
    }
    report = (project.path / "reports/latest/report.md").read_text()
    assert (
        "| refuted | quantization | awq | **refuted, not as asked** | off | EngineCore: quantization=None |" in report
    )
    assert "| unknown | async scheduling | on | unknown |" in report
    assert "- proved: Unknown vLLM environment variable detected: VLLM_USE_V1: vLLM ignores VLLM_USE_V1" in report


def test_every_engine_reports_evidence_whatever_its_tests_look_at(project):
    info = {"vllm_config": {"scheduler_config": {"async_scheduling": True}}}
    project.write(engines=[{"name": "one", "args": {"fake-server-info": json.dumps(info)}}])
    assert project.run().ret == 0
    evidence = {e["optimisation"]: e["state"] for e in project.report["engines"][0]["evidence"]}
    assert evidence["async scheduling"] == "confirmed"
    assert evidence["V1 engine"] == "unknown"
