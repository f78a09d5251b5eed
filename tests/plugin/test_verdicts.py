"""Exit codes and words: a run is green only when something was judged and nothing failed."""

import json


def test_a_run_whose_limits_hold_is_green_and_leaves_a_report_and_history(project, verdict_of):
    project.write()
    result = project.run("-v")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["*test_first_token*one* PASSED*", "*Exit code 0*"])
    assert verdict_of(project.report, "ttft_mean") == "PASS"
    assert verdict_of(project.report, "ttft_p99") == "NOT JUDGED"
    names = {b["name"] for path in project.history for b in json.loads(path.read_text())["benchmarks"]}
    assert {"one/tiny::ttft", "one/tiny::output_throughput"} <= names
    assert (project.path / "reports/latest/report.md").read_text().count("output_throughput")


def test_history_keeps_every_raw_sample(project):
    project.write()
    assert project.run().ret == 0
    (path,) = project.history
    ttft = next(b for b in json.loads(path.read_text())["benchmarks"] if b["name"] == "one/tiny::ttft")
    assert len(ttft["stats"]["data"]) == 6
    assert ttft["extra_info"]["unit"] == "s"


def test_a_missed_limit_fails_its_test_and_names_value_limit_and_place(project):
    project.write(thresholds='version = 1\n[[limit]]\noutput_throughput = { min = "999999999 tok/s" }\n')
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*FAIL: *thresholds.toml: limit*output_throughput*"])
    assert project.report["exit_code"] == 1


def test_the_failure_message_stays_within_twelve_lines(project):
    project.write(thresholds='version = 1\n[[limit]]\noutput_throughput = { min = "999999999 tok/s" }\n')
    result = project.run("-q", "--no-header")
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if "judgements failed" in line)
    end = next(i for i, line in enumerate(lines) if i > start and line.startswith(("=", "_", "-")))
    assert end - start <= 12


def test_nothing_judged_is_exit_code_12_and_says_why(project):
    project.write(thresholds='version = 1\n[[limit]]\nmatch = { hardware = "NVIDIA *" }\nttft_mean = { max = "1 s" }\n')
    result = project.run("-v")
    assert result.ret == 12
    result.stdout.fnmatch_lines(["*test_first_token* RECORDED*", "*nothing was judged*"])


def test_a_run_without_a_thresholds_file_judges_nothing(project):
    project.write(thresholds=None)
    assert project.run().ret == 12


def test_record_only_makes_nothing_judged_green(project):
    project.write(thresholds=None)
    assert project.run("--vllmperf-record-only").ret == 0
    assert project.history


def test_zero_completed_requests_is_invalid_and_exit_code_10(project):
    project.write(engines=[{"name": "one", "args": {"fake-shape": "http-500", "fake-shape-after": 1}}])
    result = project.run("-v")
    assert result.ret == 10, result.stdout.str()
    result.stdout.fnmatch_lines(["*test_first_token* INVALID*", "*0 of 6 requests completed*http_error*"])


def test_failed_requests_fail_the_run_although_no_limit_mentions_them(project):
    project.write(engines=[{"name": "one", "args": {"fake-shape": "http-500", "fake-shape-after": 8}}])
    result = project.run()
    assert result.ret == 1, result.stdout.str()
    result.stdout.fnmatch_lines(["*error rate*built in*"])


def test_a_limit_that_no_test_of_the_whole_suite_looked_at_is_not_silently_green(project):
    project.write(thresholds=project_thresholds_with('tpot_mean = { max = "60 s" }'))
    result = project.run()
    assert result.ret == 12
    result.stdout.fnmatch_lines(["*tpot_mean* applies here*never judged*"])


def test_a_limit_for_unselected_tests_is_not_missed_in_a_partial_run(project):
    project.write(thresholds=project_thresholds_with('tpot_mean = { max = "60 s" }'))
    assert project.run("-k", "first_token").ret == 0


def test_a_limit_for_another_engine_does_not_count_as_unused_here(project):
    project.write(
        engines=[{"name": "one"}, {"name": "two"}],
        thresholds=project_thresholds_with('[[limit]]\nmatch = { engine = "two" }\ntpot_mean = { max = "60 s" }'),
    )
    assert project.run("--vllmperf-engine", "one").ret == 0


def test_an_ordinary_failure_beside_passing_limits_is_exit_code_1(project):
    project.write(files={"suites/test_other.py": "def test_other():\n    assert 1 == 2\n"})
    assert project.run().ret == 1


def project_thresholds_with(extra: str) -> str:
    base = 'version = 1\n[[limit]]\nttft_mean = { max = "60 s" }\noutput_throughput = { min = "0.001 tok/s" }\n'
    return base + extra + "\n"
