"""Limits proposed from launches: what is written, what is refused, and that they judge the next run."""

import sys

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUITE = """
import pytest

@pytest.mark.vllm_workload("tiny")
def test_speed(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean", "output_throughput", "ttft_p99")

def test_start(vllm_start_up, vllm_check):
    vllm_check(vllm_start_up, "time_to_ready")
"""
LIMITS = """\
# Ours.
version = 1

[[limit]]   # for all machines
match = { workload = "startup" }
time_to_ready      = { max = "1 us" }       # no engine meets this
first_request_ttft = { max = "1 min" }
"""
START = """
def test_start(vllm_start_up, vllm_check):
    vllm_check(vllm_start_up, "time_to_ready", "first_request_ttft")
"""
THREE = ("--vllmperf-calibrate", "--vllmperf-launches=3")
SLOW = {"name": "one", "args": {"fake-ttft-ms": 40, "fake-itl-ms": 5}}


def written(project):
    return tomllib.loads((project.path / "thresholds.toml").read_text())


def own_table(project, workload="tiny"):
    """The table for exactly this machine, model, engine and workload."""
    hardware = project.report["environment"]["hardware"]
    match = {"hardware": hardware, "model": "fake-model", "engine": "one", "workload": workload}
    return next((table for table in written(project)["limit"] if table.get("match") == match), None)


def test_limits_come_from_three_launches_and_judge_the_next_run(project):
    project.write(engines=[SLOW], suite=SUITE, thresholds=None)
    result = project.run(*THREE, "-v")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "*calibrating: 3 launches of each engine, nothing judged; limits: thresholds.toml*",
            "*test_speed*RECORDED*",
            "*Proposed limits: thresholds.toml: 3 added*",
            "*Proposed limits: 1 without a limit: one × tiny ttft_p99: 6 samples a launch, and p99 needs 459*",
            '+ttft_mean*= { max = *ms" }  # *over 3 launches, sd *',
        ]
    )
    assert project.launches() == {"one": 3}
    (section,) = [s for s in project.report["sections"] if s["id"] == "calibration"]
    assert len(section["tables"][0]["rows"]) == 4
    assert set(own_table(project)) == {"match", "ttft_mean", "output_throughput"}
    assert set(own_table(project, "startup")) == {"match", "time_to_ready"}
    judged = project.run("-v")
    assert judged.ret == 0, judged.stdout.str()
    judged.stdout.fnmatch_lines(["*ttft_mean*PASS (1 launch)*"])


def test_what_is_tighter_stays_unless_forced_and_comments_stay_anyway(project):
    project.write(engines=[SLOW], suite=START, thresholds=LIMITS)
    result = project.run(*THREE)
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["*Proposed limits: thresholds.toml: 1 tightened, 1 kept*"])
    assert (project.path / "thresholds.toml").read_text().startswith(LIMITS)
    assert set(own_table(project, "startup")) == {"match", "first_request_ttft"}
    forced = project.run(*THREE, "--vllmperf-force")
    forced.stdout.fnmatch_lines(["*thresholds.toml: *loosened*"])
    assert (project.path / "thresholds.toml").read_text().startswith(LIMITS)
    assert "time_to_ready" in own_table(project, "startup")


def test_a_broken_measurement_is_no_source_of_limits(project):
    broken = {"name": "one", "args": {"fake-shape": "http-500", "fake-shape-after": 1}}
    project.write(engines=[broken], suite=SUITE, thresholds="version = 1  # empty\n")
    result = project.run(*THREE, "-k", "test_speed")
    assert result.ret == 10, result.stdout.str()
    result.stdout.fnmatch_lines(["*without a limit: one × tiny *: the measurement is INVALID*"])
    assert (project.path / "thresholds.toml").read_text() == "version = 1  # empty\n"


def test_a_run_that_was_broken_off_writes_nothing(project):
    project.write(engines=[SLOW], suite="def test_first():\n    assert False\n" + SUITE, thresholds=None)
    result = project.run(*THREE, "-x")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*Proposed limits: the run was broken off: thresholds.toml stays as it is*"])
    assert not (project.path / "thresholds.toml").exists()


def test_a_file_that_became_wrong_during_the_run_stays_and_fails_the_run(project):
    suite = """
def test_start(vllm_start_up, vllm_check, request):
    vllm_check(vllm_start_up, "time_to_ready")
    (request.config.rootpath / "thresholds.toml").write_text("version = 2")
"""
    project.write(engines=[SLOW], suite=suite, thresholds="version = 1\n")
    result = project.run(*THREE)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*! no limits were written: *version = 2*", "*Exit code 1.*"])
    assert (project.path / "thresholds.toml").read_text() == "version = 2"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--vllmperf-force"], "*--vllmperf-force belongs to --vllmperf-calibrate*"),
        (["--vllmperf-calibrate", "--vllmperf-launches=2"], "*so 3 are needed at least*"),
        (["--vllmperf-calibrate", "--vllmperf-compare=one:one"], "*with --vllmperf-compare: a comparison judges*"),
    ],
)
def test_what_cannot_be_calibrated_is_a_usage_error(project, options, told):
    project.write(suite=SUITE)
    result = project.run(*options)
    assert result.ret == 4
    result.stderr.fnmatch_lines([told])
