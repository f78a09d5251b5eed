"""Engines as parameters: launched once each, skipped or failed with the cause, never hiding the others."""

from pathlib import Path

BROKEN = {"name": "broken", "args": {"fake-fail-start": "ValueError: this engine is broken on purpose"}}


def test_each_engine_is_launched_exactly_once(project):
    project.write(engines=[{"name": "one"}, {"name": "two"}])
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=4)
    assert project.launches() == {"one": 1, "two": 1}


def test_a_failing_engine_is_tried_once_and_the_other_is_measured_and_stored(project):
    project.write(engines=[BROKEN, {"name": "good"}])
    result = project.run()
    assert result.ret == 1
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["*this engine is broken on purpose*"])
    assert project.launches() == {"broken": 1, "good": 1}
    assert {s["engine"] for s in project.report["summaries"]} == {"good"}
    assert project.history


def test_a_missing_executable_says_which(project):
    project.write(engines=[{"name": "one", "command": ["/nonexistent/python"]}])
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*/nonexistent/python*"])


def test_an_engine_that_needs_a_gpu_is_skipped_without_one_and_the_run_is_not_green(project, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    project.write(engines=[{"name": "one", "requires": ["gpu"]}])
    result = project.run()
    result.assert_outcomes(skipped=2)
    assert result.ret == 12
    result.stdout.fnmatch_lines(["*every engine was skipped*"])


def test_require_gpu_turns_the_skip_into_a_failure(project):
    project.write(engines=[{"name": "one", "requires": ["gpu"]}])
    assert project.run("--vllmperf-require-gpu").ret == 1


def test_naming_a_gpu_engine_in_ci_requires_the_gpu(project, monkeypatch):
    monkeypatch.setenv("CI", "true")
    project.write(engines=[{"name": "one", "requires": ["gpu"]}])
    assert project.run().ret == 12
    assert project.run("--vllmperf-engine=one").ret == 1


def test_only_the_engines_named_on_the_command_line_are_launched(project):
    project.write(engines=[{"name": "one"}, {"name": "two"}])
    project.run("--vllmperf-engine=two").assert_outcomes(passed=2)
    assert project.launches() == {"two": 1}


def test_a_marker_restricts_a_test_to_some_engines(project):
    suite = """
    import pytest

    @pytest.mark.vllm_engine("two")
    def test_only_two(vllm_engine):
        assert vllm_engine.name == "two"
    """
    project.write(engines=[{"name": "one"}, {"name": "two"}], suite=suite, thresholds=None)
    result = project.run("--vllmperf-record-only")
    result.assert_outcomes(passed=1)
    assert project.launches() == {"two": 1}


def test_an_unknown_engine_on_the_command_line_is_a_usage_error(project):
    project.write()
    result = project.run("--vllmperf-engine=three")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--vllmperf-engine=three: no such engine; declared: one*"])


def test_two_engines_of_one_name_are_a_usage_error(project):
    project.write(engines=[{"name": "one"}, {"name": "one"}])
    result = project.run()
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*'one' is used twice*"])


def test_an_unknown_workload_names_the_known_ones(project):
    project.write(suite="def test_it(vllm_measure):\n    vllm_measure('brst')\n")
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*workload 'brst' is unknown; known: single-user*tiny*"])


def test_an_unknown_metric_names_the_nearest(project):
    project.write(suite="def test_it(vllm_measure, vllm_check):\n    vllm_check(vllm_measure('tiny'), 'ttft_men')\n")
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*'ttft_men' is unknown; did you mean ttft_mean*"])


def test_an_engine_that_dies_under_load_gives_its_cause_and_the_next_engine_goes_on(project):
    """C05."""
    dying = {"name": "dying", "args": {"fake-exit-after-requests": 6}}
    project.write(engines=[dying, {"name": "good"}])
    result = project.run()
    assert result.ret == 1
    assert {v["engine"] for v in project.report["verdicts"] if v["outcome"] == "PASS"} >= {"good"}


ASKING = """
from dataclasses import replace
from pytest_vllmperf.domain.quality_tasks import BUILT_IN_TASKS

TASK = replace(BUILT_IN_TASKS["tinymath"], data={data!r}, questions=40, max_concurrency=2, canaries=False, kl_texts=0)

def test_quality(vllm_evaluate):
    assert vllm_evaluate(TASK).completed == 40

def test_speed(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")
"""


def test_an_engine_that_dies_while_questions_are_asked_gives_its_cause_and_the_next_engine_goes_on(project):
    """C06."""
    data = str(Path(__file__).parents[2] / "suites" / "models" / "tinymath" / "test.jsonl")
    dying = {"name": "dying", "args": {"fake-exit-after-requests": 12, "fake-exit-code": 3}}
    project.write(engines=[dying, {"name": "good"}], suite=ASKING.format(data=data))
    result = project.run("-rfE")
    assert result.ret == 1
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*engine 'dying' ended with code 3 after it was ready*"])
    assert project.launches() == {"dying": 1, "good": 1}
