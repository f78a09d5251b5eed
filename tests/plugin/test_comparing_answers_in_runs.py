"""Answers of two engines to the same questions, compared in a run: by lm-eval's task code, look by look, exactly."""

import json

import pytest

TASK = """
from pytest_vllmperf import QualityTask

def pytest_vllmperf_quality_tasks(config):
    return [
        QualityTask(
            name="ours", data="q.jsonl", answer_pattern="The answer is ([0-9]+)", oracle="The answer is {{gold}}",
            canaries=False, questions=400,
        )
    ]
"""
SUITE = """
def test_answers(vllm_compare, vllm_quality_task):
    vllm_compare(vllm_quality_task)
"""


def says(name, answer):
    return {"name": name, "args": {"fake-answer": f"{{question}} The answer is {answer}."}}


@pytest.fixture
def answers(project):
    """400 questions in a mixed order: 4 is right for seven in ten, 5 for two, and the rest nobody knows."""

    def compare(candidate):
        gold = [(4, 4, 5, 4, 4, 9, 4, 4, 5, 4)[i % 10] for i in range(400)]
        rows = "\n".join(json.dumps({"question": f"What is {i}?", "answer": f"#### {g}"}) for i, g in enumerate(gold))
        engines = [says("four", 4), says("other", candidate)]
        project.write(suite=SUITE, thresholds=None, engines=engines, files={"own.py": TASK, "q.jsonl": rows})
        result = project.run("-p", "own", "--vllmperf-compare=four:other")
        (verdict,) = [v for v in project.report["verdicts"] if v["metric"] == "accuracy"]
        return result, verdict

    return compare


def test_a_worse_candidate_fails_at_the_second_look_by_the_exact_test(answers, project):
    result, verdict = answers(5)
    assert result.ret == 1, result.stdout.str()
    assert (verdict["outcome"], verdict["n"], verdict["against"]) == ("FAIL", 120, "four")
    assert -0.65 < verdict["change"] < -0.35
    assert project.launches() == {"four": 2, "other": 2}, "one look for each pair of launches"
    result.stdout.fnmatch_lines(
        [
            "*2 to 6 launches: pairs in ABBA order, looks at answers after 30, 120, 400 questions, one look for each*",
            "*FAIL: accuracy -* points on 120 questions (84 lost, * gained, p = *",
        ]
    )


def test_equal_answers_pass_as_soon_as_the_tolerance_is_ruled_out(answers):
    result, verdict = answers(4)
    assert result.ret == 0, result.stdout.str()
    assert (verdict["outcome"], verdict["n"], verdict["change"]) == ("PASS", 120, 0.0)
