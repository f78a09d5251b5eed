"""Quality tasks in a run: what is wrong with one is told before any engine is launched."""

import json

import pytest

TASKS = """
import pytest
from pytest_vllmperf import QualityTask

OURS = QualityTask(name="ours", data="questions.jsonl", answer_pattern="The answer is ([0-9]+)", questions=3)

def test_answers(vllm_evaluate):
    vllm_evaluate({asked})
"""
ROW = '{"question": "What is 1 + 1?", "answer": "It is. #### 2"}\n'


def one_test(asked, *, decorator=""):
    return TASKS.format(asked=asked).replace("def test", f"{decorator}\ndef test")


@pytest.mark.parametrize(
    ("suite", "files", "thresholds", "told"),
    [
        (one_test('"gsm9k"'), {}, "", "quality task 'gsm9k' is unknown; known: gsm8k,*"),
        (one_test("OURS"), {"questions.jsonl": ROW + "{"}, "", "questions.jsonl:2: not JSON*"),
        (
            one_test("name", decorator='@pytest.mark.parametrize("name", ["typo"])').replace("(vllm", "(name, vllm"),
            {},
            '[quality.tasks.typo]\ndata = "none.jsonl"\nanswer_pattern = "([0-9]+)"\n',
            "none.jsonl: no such file or directory*",
        ),
    ],
    ids=["unknown", "malformed", "by-parameter"],
)
def test_a_task_that_cannot_be_asked_stops_the_run_before_any_launch(project, suite, files, thresholds, told):
    project.write(suite=suite, files=files, thresholds=f"version = 1\n{thresholds}")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{told}"])
    assert not (project.path / "reports").exists()


def test_data_that_cannot_be_had_fails_its_tests_only_and_launches_nothing_for_them(project):
    suite = """
    import pytest

    @pytest.mark.vllm_engine("one")
    def test_fine(vllm_measure, vllm_check):
        vllm_check(vllm_measure("tiny"), "ttft_mean")

    @pytest.mark.vllm_engine("two")
    def test_answers(vllm_evaluate):
        vllm_evaluate("hellaswag")

    @pytest.mark.vllm_engine("two")
    def test_others(vllm_evaluate):
        vllm_evaluate("winogrande")
    """
    skip = 'version = 1\n[quality.tasks.winogrande]\nunavailable = "skip"\n[[limit]]\nttft_mean = { max = "60 s" }\n'
    project.write(engines=[{"name": "one"}, {"name": "two"}], suite=suite, thresholds=skip)
    (project.path / "data").mkdir()
    result = project.run("--vllmperf-data=data", "-rs")
    result.assert_outcomes(passed=1, errors=1, skipped=1)
    result.stdout.fnmatch_lines(["*holds no hellaswag/*", "*SKIPPED*holds no winogrande/*"])
    assert project.launches() == {"one": 1}


def test_workers_refuse_the_test_before_its_engine_is_launched(project):
    pytest.importorskip("xdist")
    project.write(suite=one_test("OURS") + "\ndef test_fine(vllm_measure):\n    pass\n")
    result = project.run("-n1", "--vllmperf-record-only")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*questions.jsonl: no such file or directory*"])


def test_a_reference_on_another_worker_is_compared_with_or_its_absence_is_a_verdict(project):
    """Two workers evaluate both engines at the same time: the candidate may find no answers of the reference yet."""
    pytest.importorskip("xdist")
    suite = """
    from pytest_vllmperf import QualityTask, ValidityLimits

    OURS = QualityTask(
        name="ours",
        data="q.jsonl",
        answer_pattern="The answer is ([0-9]+)",
        oracle="The answer is {{gold}}",
        reference="whole",
        canaries=False,
        validity=ValidityLimits(identical_rate=1.0, misread_rate=1.0),
    )

    def test_answers(vllm_evaluate, vllm_check):
        vllm_check(vllm_evaluate(OURS), "accuracy")
    """
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(30)]
    answer = {"fake-answer": "The answer is 4."}
    project.write(
        suite=suite,
        engines=[{"name": "whole", "args": answer}, {"name": "part", "args": answer}],
        files={"q.jsonl": "\n".join(map(json.dumps, rows))},
    )
    project.run("-n2", "--vllmperf-share-cpu", "--vllmperf-record-only")
    (verdict,) = [v for v in project.report["verdicts"] if v["metric"] == "accuracy_change"]
    (part,) = [s for s in project.report["summaries"] if s["engine"] == "part"]
    assert verdict["engine"] == "part"
    if "reference" in part["facts"]:
        assert "accuracy against whole: +0.0 points on 30 questions" in verdict["reason"]
    else:
        assert "not compared with whole: no answers of 'whole' are stored" in verdict["reason"]
        assert any("run again, or without -n" in warning for warning in part["warnings"])
