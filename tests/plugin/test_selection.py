"""Measuring a part, and quickly: --vllmperf-workload, --vllmperf-quick; and never again until it passes."""

import json

import pytest

SUITE = """
import pytest
from pytest_vllmperf import Workload

@pytest.mark.parametrize("workload", ["tiny", "burst"])
def test_named_by_parameter(vllm_measure, workload):
    vllm_measure(workload)

@pytest.mark.vllm_workload("burst")
def test_named_by_marker(vllm_measure):
    vllm_measure("burst")

def test_named_inside(vllm_measure):
    vllm_measure("burst")

def test_start(vllm_start_up):
    pass

def test_any(vllm_engine):
    pass
"""


def test_only_the_selected_workload_is_measured(project):
    project.write(suite=SUITE)
    result = project.run("--vllmperf-workload=tiny", "--vllmperf-record-only", "-rs")
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=2, skipped=1, deselected=3)
    result.stdout.fnmatch_lines(["*workload 'burst' is not selected (--vllmperf-workload=tiny)*"])
    assert [s["workload"] for s in project.report["summaries"]] == ["tiny"]


def test_an_unknown_workload_on_the_command_line_is_a_usage_error(project):
    project.write()
    result = project.run("--vllmperf-workload=tny")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--vllmperf-workload=tny: no such workload; known: single-user, *tiny, startup*"])


def stored(project):
    (path,) = project.history
    return path, {b["fullname"]: b["extra_info"] for b in json.loads(path.read_text())["benchmarks"]}


def test_a_quick_run_sends_fewer_requests_and_is_marked_and_no_baseline(project):
    project.write()
    result = project.run("--vllmperf-quick")
    assert result.ret == 0, result.stdout.str()
    (summary,) = project.report["summaries"]
    assert summary["requests"] == 3
    assert "quick run: 3 of 6 requests (--vllmperf-quick), no baseline" in summary["warnings"]
    info = stored(project)[1]["one/tiny::ttft"]
    assert (info["quick"], info["baseline"]) == (True, False)


def test_history_is_kept_by_hardware_with_a_fingerprint(project):
    project.write()
    assert project.run().ret == 0
    path, infos = stored(project)
    assert path.parent.parent.name == ".benchmarks"
    assert path.parent.name.startswith("CPU-")
    info = infos["one/tiny::ttft"]
    assert info["baseline"] is True
    assert len(info["fingerprint"]) == 16
    result = project.run("--benchmark-compare")
    assert result.ret == 0, result.stderr.str()
    result.stderr.fnmatch_lines([f"Comparing against benchmarks from: {path.parent.name}/0001_*"])
    assert stored_fingerprint(project.history[-1]) == info["fingerprint"]


def stored_fingerprint(path):
    return json.loads(path.read_text())["benchmarks"][0]["extra_info"]["fingerprint"]


def test_a_failed_run_is_stored_and_is_no_baseline(project):
    project.write(thresholds='version = 1\n[[limit]]\noutput_throughput = { min = "999999999 tok/s" }\n')
    assert project.run().ret == 1
    info = stored(project)[1]["one/tiny::output_throughput"]
    assert (info["outcomes"], info["baseline"]) == ({"output_throughput": "FAIL"}, False)


def test_a_missed_limit_stops_stepwise_which_goes_on_there(project):
    suite = """
    def test_first_token(vllm_measure, vllm_check):
        vllm_check(vllm_measure("tiny"), "ttft_mean")

    def test_throughput(vllm_measure, vllm_check):
        vllm_check(vllm_measure("tiny"), "output_throughput")

    def test_last(vllm_engine):
        pass
    """
    limits = """
    version = 1
    [[limit]]
    ttft_mean = { max = "60 s" }
    output_throughput = { min = "999999999 tok/s" }
    """
    project.write(suite=suite, thresholds=limits)
    project.run("--sw", "--vllmperf-record-only").assert_outcomes(passed=1, failed=1)
    again = project.run("--sw", "--vllmperf-record-only")
    again.assert_outcomes(failed=1, deselected=1)
    assert again.ret != 0


def test_an_interrupted_run_is_stored_and_is_no_baseline(project):
    suite = """
    def test_first_token(vllm_measure, vllm_check):
        vllm_check(vllm_measure("tiny"), "ttft_mean")

    def test_last(vllm_engine):
        raise KeyboardInterrupt
    """
    project.write(suite=suite)
    assert project.run().ret == 2
    info = stored(project)[1]["one/tiny::ttft"]
    assert (info["exit_code"], info["baseline"]) == (2, False)
    assert info["outcomes"] == {"ttft_mean": "PASS"}


def test_comparing_works_as_ever_in_a_run_without_engines(project):
    suite = "def test_it(benchmark):\n    benchmark.pedantic(sum, args=([1],), rounds=2)\n"
    project.write(suite=suite)
    project.run("--benchmark-autosave")
    result = project.run("--benchmark-compare")
    assert result.ret == 0, result.stderr.str()
    result.stdout.fnmatch_lines(["*test_it (NOW)*"])
    assert not any(path.parent.name.startswith("CPU-") for path in project.history)


RERUNS = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--reruns", type=int)

def pytest_configure(config):
    config.addinivalue_line("markers", "flaky: as pytest-rerunfailures declares it")
"""


@pytest.mark.parametrize("marked", [False, True])
def test_repeating_a_judged_test_until_it_passes_is_a_usage_error(project, marked):
    suite = "import pytest\n\n@pytest.mark.flaky\ndef test_it(vllm_engine):\n    pass\n"
    project.write(
        suite=suite if marked else suite.replace("@pytest.mark.flaky\n", ""), files={"rerunfailures.py": RERUNS}
    )
    result = project.run("-p", "rerunfailures", *([] if marked else ["--reruns=2"]))
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*test_it?one? uses an engine, and pytest-rerunfailures would run it again*"])
    assert not (project.path / "reports").exists()


def test_with_workers_repeating_a_judged_test_is_refused_as_well(project):
    pytest.importorskip("xdist")
    suite = "import pytest\n\n@pytest.mark.flaky\ndef test_it(vllm_engine):\n    pass\n"
    project.write(suite=suite, files={"rerunfailures.py": RERUNS})
    result = project.run("-n1", "-p", "rerunfailures")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*test_it?one? uses an engine, and pytest-rerunfailures would run it again*"])
