"""Rounds, launches, too little evidence: what the words are, in the terminal, in JUnit and in the exit code."""

import xml.etree.ElementTree as ET

import pytest

ONE = """
def test_first_token(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_p50")
"""
MARKED = """
import pytest

@pytest.mark.vllm_workload("tiny")
def test_first_token(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_p50")
"""
FITS = 'version = 1\n[[limit]]\nttft_p50 = { max = "60 s" }\n'
UNKNOWN = 'version = 1\n[[limit]]\nttft_p99 = { max = "60 s", required = true }\n'
P99 = ONE.replace("ttft_p50", "ttft_p99")


def verdict(project, metric="ttft_p50"):
    return next(v for v in project.report["verdicts"] if v["metric"] == metric)


def test_case(project):
    path = project.path / "junit.xml"
    (case,) = ET.parse(path).getroot().iter("testcase")
    return case


test_case.__test__ = False  # a helper, in the words of JUnit


def test_a_pass_from_one_launch_reads_so(project):
    project.write(suite=ONE, thresholds=FITS)
    result = project.run("--junitxml=junit.xml")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*ttft_p50*PASS (1 launch)"])
    properties = {p.get("name"): p.get("value") for p in test_case(project).iter("property")}
    assert properties["vllmperf.one/tiny/ttft_p50"].startswith("PASS (1 launch): TTFT p50")


def test_rounds_repeat_a_closed_loop_and_give_an_interval(project):
    project.write(suite=ONE, thresholds=FITS.replace("[[limit]]", "[defaults]\nrounds = 3\n[[limit]]"))
    result = project.run()
    assert result.ret == 0
    found = verdict(project)
    assert (found["interval"]["n"], found["interval"]["replicate"], found["launches"]) == (3, "round", 1)
    (summary,) = [s for s in project.report["summaries"] if s["workload"] == "tiny"]
    assert summary["requests"] == 18
    assert len(set(summary["replicates"]["values"]["ttft_p50"])) == 3
    assert project.launches() == {"one": 1}


def test_launches_replicate_the_engine_until_its_limits_are_decided(project):
    project.write(suite=MARKED, thresholds=FITS)
    result = project.run("--vllmperf-launches=8", "-v")
    assert result.ret == 0, result.stdout.str()
    assert project.launches() == {"one": 3}  # decided at the first look
    found = verdict(project)
    assert (found["interval"]["replicate"], found["launches"], found["outcome"]) == ("launch", 3, "PASS")
    result.stdout.fnmatch_lines(
        ["*one: launch 3 of at most 8 (looks after 3, 5, 8)*", "*over 3 launches*" if 0 else "*"]
    )


def test_launches_are_known_from_the_limits_where_tests_do_not_tell(project):
    named = FITS.replace("[[limit]]", "[defaults]\nlaunches = 3\n[[limit]]\nmatch = { workload = 'tiny' }")
    project.write(suite=ONE, thresholds=named)
    assert project.run().ret == 0
    assert (verdict(project)["launches"], project.launches()) == (3, {"one": 3})


def test_an_engine_that_dies_while_it_is_replicated_is_told_with_its_cause(project):
    project.write(engines=[{"name": "one", "args": {"fake-exit-after-requests": 8}}], suite=MARKED)
    result = project.run("--vllmperf-launches=3")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*engine 'one' ended with*"])


@pytest.mark.parametrize(
    ("option", "code", "tag"), [((), 0, "skipped"), (("--vllmperf-inconclusive=fail",), 11, "failure")]
)
def test_too_little_evidence_is_a_warning_or_a_failure(project, option, code, tag):
    project.write(suite=WIDE, thresholds='version = 1\n[[limit]]\npeak_output_throughput = { min = "5 tok/s" }\n')
    result = project.run("--junitxml=junit.xml", "-v", *option)
    assert result.ret == code, result.stdout.str()
    result.stdout.fnmatch_lines(["*test_wide*one* INCONCLUSIVE*"])
    found = test_case(project).find(tag)
    assert found is not None
    assert "does not tell on which side" in (found.get("message") or "") + (found.text or "")


WIDE = """
from dataclasses import replace
from pytest_vllmperf.domain.summary import MetricValue, Replicates

def test_wide(vllm_measure, vllm_check):
    summary = vllm_measure("tiny")
    rounds = Replicates(
        kind="round",
        count=3,
        values={"peak_output_throughput": (1.0, 5.0, 30.0)},
        samples={"peak_output_throughput": 1},
    )
    value = MetricValue(name="peak_output_throughput", value=6.0, n=3, samples=(1.0, 5.0, 30.0), missing=None)
    metrics = {**summary.metrics, "peak_output_throughput": value}
    vllm_check(replace(summary, replicates=rounds, metrics=metrics), "peak_output_throughput")
"""


def test_a_required_limit_fails_on_too_little_evidence(project):
    project.write(suite=P99, thresholds=UNKNOWN)
    result = project.run("-v")
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*test_first_token*INCONCLUSIVE*"])


def test_a_broken_measurement_is_an_error_in_junit(project):
    project.write(engines=[{"name": "one", "args": {"fake-shape": "http-500", "fake-shape-after": 1}}], suite=ONE)
    assert project.run("--junitxml=junit.xml").ret == 10
    case = test_case(project)
    assert case.find("error") is not None
    assert case.find("failure") is None
    suite = next(ET.parse(project.path / "junit.xml").getroot().iter("testsuite"))
    assert (suite.get("errors"), suite.get("failures"), suite.get("tests")) == ("1", "0", "1")


def test_a_missed_limit_is_a_failure_in_junit(project):
    project.write(suite=ONE, thresholds='version = 1\n[[limit]]\nttft_p50 = { max = "1 us" }\n')
    assert project.run("--junitxml=junit.xml").ret == 1
    assert test_case(project).find("failure") is not None


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--vllmperf-launches=0", "*--vllmperf-launches=0: must be 1 or more*"),
        ("--vllmperf-pairs=1", "*--vllmperf-pairs=1: must be 2 or more*"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(project, option, told):
    project.write(suite=ONE)
    result = project.run(option)
    assert result.ret == 4
    result.stderr.fnmatch_lines([told])
