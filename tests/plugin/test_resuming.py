"""--vllmperf-resume: a killed run goes on; what it measured counts, engines that are done are not launched."""

SUITE = """
import os
import signal

def test_first(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")

def test_second(vllm_engine, vllm_measure, vllm_check):
    if vllm_engine.name == "two" and os.path.exists("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    vllm_check(vllm_measure("tiny"), "output_throughput")
"""
ENGINES = [{"name": "one"}, {"name": "two"}]
NOTE = "which this one goes on with"


def killed(project):
    project.write(engines=ENGINES, suite=SUITE)
    (project.path / "kill").touch()
    project.run()
    (project.path / "kill").unlink()


def test_the_rest_of_a_killed_run_is_run_and_everything_concluded(project):
    killed(project)
    (project.path / "kill").touch()
    project.run("--vllmperf-resume")  # killed again, at the same place: nothing taken over is lost
    (project.path / "kill").unlink()
    result = project.run("-v", "--vllmperf-resume")
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=1, deselected=3)
    output = result.stdout.str()
    assert "3 of 4 tests are done" in output
    assert "one: starting" not in output, "its tests are done"
    report = project.report
    assert {(v["engine"], v["metric"]) for v in report["verdicts"]} >= {
        (engine, metric) for engine in ("one", "two") for metric in ("ttft_mean", "output_throughput")
    }
    assert all(any(NOTE in warning for warning in s["warnings"]) for s in report["summaries"])
    assert project.launches() == {"one": 1, "two": 2}


def test_an_engine_configured_otherwise_since_is_measured_anew(project):
    killed(project)
    project.write(engines=[{"name": "one", "args": {"fake-ttft-ms": 3.0}}, ENGINES[1]], suite=SUITE)
    result = project.run("--vllmperf-resume")
    assert result.ret == 0
    result.assert_outcomes(passed=3, deselected=1)


def test_what_cannot_be_gone_on_with_is_told(project):
    project.write(engines=ENGINES, suite=SUITE)
    first = project.run("--vllmperf-resume")
    assert (first.ret, "nothing to go on with" in first.stderr.str()) == (4, True)
    project.run()
    whole = project.run("--vllmperf-resume")
    assert (whole.ret, "went to its end" in whole.stderr.str()) == (4, True)


def test_other_limits_than_the_killed_runs_are_refused(project):
    killed(project)
    project.write(engines=ENGINES, suite=SUITE, thresholds='version = 1\n[[limit]]\nttft_mean = { max = "50 s" }\n')
    other = project.run("--vllmperf-resume")
    assert (other.ret, "had other limits" in other.stderr.str()) == (4, True)
