"""--vllmperf-compare: engines launched alternately, judged at looks, on real processes."""

import json

import pytest

SUITE = """
import pytest

@pytest.mark.parametrize("workload", ["tiny"])
@pytest.mark.vllm_metrics("ttft_p50", "output_throughput")
def test_speed(vllm_compare, workload):
    vllm_compare(workload)

def test_level(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")
"""
FAST = {"name": "base", "args": {"fake-ttft-ms": 30.0}}
SLOW = {"name": "slow", "args": {"fake-ttft-ms": 300.0}}
AGAIN = {"name": "same", "args": {"fake-ttft-ms": 30.0}}
ASKED = "--vllmperf-compare=base:slow"


def verdicts(project):
    return {(v["metric"], v["against"]): v for v in project.report["verdicts"]}


def test_a_slower_candidate_fails_with_its_change_and_interval(project):
    project.write(engines=[FAST, SLOW], suite=SUITE)
    result = project.run("-v", "-k", "speed", ASKED)
    assert result.ret == 1, result.stdout.str()
    found = verdicts(project)["ttft_p50", "base"]
    assert found["outcome"] == "FAIL"
    assert found["change"] > 2
    assert found["interval"]["low"] > 0
    assert found["interval"]["n"] == 4
    result.stdout.fnmatch_lines(
        [
            "*base:slow: 8 to 20 launches: pairs in ABBA order, looks after 4, 6, 8, 10 pairs, on tiny*",
            "*test_speed*base:slow-tiny* FAILED*",
            "*slow against base × tiny: * of 2 judgements failed*",
            "*FAIL: TTFT p50 +*over 4 pairs: worse, and not shown to be within the tolerance of 15 %*",
        ]
    )


def test_the_plain_sentence_stands_in_the_report(project):
    project.write(engines=[FAST, SLOW], suite=SUITE)
    result = project.run("-k", "speed", ASKED, "--vllmperf-pairs=2")
    section = next(s for s in project.report["sections"] if s["title"] == "slow against base")
    assert section["sentences"][0].startswith("Worse in TTFT p50 at tiny")
    assert result.ret == 1


def test_each_pair_is_two_launches_and_every_sample_is_stored(project):
    project.write(engines=[FAST, SLOW], suite=SUITE)
    project.run("-k", "speed", ASKED, "--vllmperf-pairs=2")
    launches = project.launches()
    assert launches == {"base": 2, "slow": 2}
    (path,) = project.history
    stored = {b["fullname"]: b for b in json.loads(path.read_text())["benchmarks"]}
    ttft = stored["slow/tiny::ttft"]
    assert len(ttft["stats"]["data"]) == 6 * launches["slow"]
    assert ttft["extra_info"]["experiment"] == "base:slow"
    assert len(ttft["extra_info"]["replicates"]["ttft_p50"]) == launches["slow"]
    assert {path.name for path in (project.path / "reports/latest/logs").iterdir()} >= {"slow.log", "slow.2.log"}


def test_without_being_asked_comparing_tests_count_for_nothing(project):
    project.write(engines=[FAST], suite=SUITE, thresholds='version = 1\n[[limit]]\ntpot_mean = { max = "1 s" }\n')
    result = project.run()
    result.assert_outcomes(deselected=1)
    assert result.ret == 12
    result.stdout.fnmatch_lines(["*tpot_mean*applies here*never judged*"])  # the run is a whole one


def test_an_engine_can_be_compared_with_itself(project):
    project.write(
        engines=[FAST], suite=SUITE, thresholds="version = 1\n[[limit]]\nttft_p50 = { tolerance = '200 %' }\n"
    )
    result = project.run("-k", "speed", "--vllmperf-compare=base:base", "--vllmperf-pairs=2")
    assert result.ret == 0
    assert project.launches() == {"base": 2, "base.again": 2}
    assert verdicts(project)["ttft_p50", "base"]["outcome"] in ("PASS", "INCONCLUSIVE")


def test_the_rest_of_the_suite_runs_after_it_on_launches_of_its_own(project):
    project.write(engines=[FAST, AGAIN], suite=SUITE)
    result = project.run("-v", "--vllmperf-compare=base:same", "--vllmperf-pairs=2")
    result.assert_outcomes(passed=2 if "INCONCLUSIVE" in result.stdout.str() else 3)
    assert project.launches() == {"base": 3, "same": 3}
    assert verdicts(project)["ttft_mean", None]["outcome"] == "PASS"


def test_a_comparison_stays_on_one_worker(project):
    pytest.importorskip("xdist")
    project.write(engines=[FAST, SLOW], suite=SUITE)
    result = project.run("-n2", "--vllmperf-share-cpu", ASKED, "-v", "--vllmperf-pairs=2")
    assert result.ret == 1, result.stdout.str()
    assert verdicts(project)["ttft_p50", "base"]["outcome"] == "FAIL"
    assert project.launches()["base"] == project.launches()["slow"]


def test_a_fail_is_repeated_once_with_fresh_launches_when_asked(project):
    project.write(engines=[FAST, SLOW], suite=SUITE)
    project.run("-k", "speed", ASKED, "--vllmperf-confirm", "--vllmperf-pairs=2")
    found = verdicts(project)["ttft_p50", "base"]
    assert found["outcome"] == "FAIL"
    assert "confirmed by fresh launches" in found["reason"]
    assert project.launches()["slow"] == 4


def test_what_was_measured_before_an_engine_broke_is_kept(project):
    broken = {"name": "slow", "args": {"fake-exit-after-requests": 5}}
    project.write(engines=[FAST, broken], suite=SUITE)
    result = project.run("-k", "speed", "--vllmperf-compare=slow:base")  # the first pair begins with the candidate
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*engine 'slow' ended with*after it was ready*"])
    assert project.launches() == {"base": 1, "slow": 1}
    (path,) = project.history
    assert any(b["fullname"].startswith("base/tiny") for b in json.loads(path.read_text())["benchmarks"])


def test_failed_requests_of_the_candidate_alone_fail_it(project):
    failing = {"name": "slow", "args": {"fake-shape": "http-500", "fake-shape-after": 8}}
    project.write(engines=[FAST, failing], suite=SUITE)
    result = project.run("-k", "speed", ASKED, "--vllmperf-pairs=2")
    assert result.ret == 1
    assert verdicts(project)["error_rate", "base"]["outcome"] == "FAIL"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("base", "*--vllmperf-compare=base: give two engines as BASE:CANDIDATE*"),
        ("base:absent", "*--vllmperf-compare=base:absent: no engine 'absent'; declared: base*"),
    ],
)
def test_a_comparison_of_nothing_is_a_usage_error(project, given, told):
    project.write(engines=[FAST], suite=SUITE)
    result = project.run(f"--vllmperf-compare={given}")
    assert result.ret == 4
    result.stderr.fnmatch_lines([told])


def test_a_test_that_does_not_tell_what_it_measures_is_told_how(project):
    project.write(engines=[FAST, AGAIN], suite='def test_it(vllm_compare):\n    vllm_compare("tiny")\n')
    result = project.run("--vllmperf-compare=base:same")
    assert result.ret == 1
    result.stdout.fnmatch_lines(['*does not tell what it measures before it runs: give it a parameter "workload"*'])


def test_reruns_of_a_comparison_are_refused(project):
    pytest.importorskip("pytest_rerunfailures")
    project.write(engines=[FAST, SLOW], suite=SUITE)
    assert project.run("-k", "speed", ASKED, "--reruns", "2").ret == 4
