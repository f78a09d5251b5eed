"""History through the real pytest-benchmark: saved, listed, compared, beside ordinary benchmarks, under xdist."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pytest_command import PLAIN

import pytest_vllmperf
from pytest_vllmperf.adapters import history
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.errors import HistoryError

ROOT = Path(pytest_vllmperf.__file__).parent.parent

CONFTEST = """
import os
import time
import pytest
from pytest_vllmperf.adapters import history
from pytest_vllmperf.adapters.history import pytest_benchmark_scale_unit
from pytest_vllmperf.domain.summary import Summary, metric_values

SLOWER = float(os.environ.get("SLOWER", "1"))

def summary(engine, **scalars):
    ttft = [SLOWER * (0.1 + i / 100) for i in range(50)]
    return Summary(
        engine=engine, workload="burst", kind="load", model="tinymath", description="", requests=50, completed=50,
        failures={}, duration_s=1.0, invalid=("a doubt",), warnings=(), facts={},
        metrics=metric_values(
            distributions={"ttft": ttft, "tpot": [], "itl": [0.1, float("nan")]},
            scalars={"output_throughput": 4800.0 / SLOWER, "device_memory_peak": 2.0**34, "error_rate": 0.0,
                     "kv_cache_usage_peak": 0.5, "preemptions": 3.0, "goodput": None, **scalars},
        ),
    )

if "REAL_MACHINE" not in os.environ:  # looking at the real one takes pytest-benchmark seconds
    def pytest_benchmark_generate_machine_info():
        clock = time.time_ns()
        return {"machine": "x86_64", "cpu": {"brand_raw": "Example", "hz_actual": [clock, 0]}}

def pytest_configure(config):
    history.prepare(config)

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput") and not os.environ.get("NOTHING"):
        extra = {"hardware": "NVIDIA H200", "exit_code": 1, "outcomes": {
            "baseline/burst::ttft_mean": "FAIL", "baseline/burst::output_throughput": "PASS"}}
        history.record(session.config, [summary("baseline"), summary("max-perf")], extra=extra)
    return (yield)
"""

ORDINARY = """
def test_ordinary(benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=3)

def test_plain():
    pass
"""
INSTALLED = tuple(int(part) for part in version("pytest-benchmark").split(".")[:3])
if INSTALLED < (5, 3, 1) and pytest.version_tuple >= (9, 2):  # its own fixture fails there
    ORDINARY = ORDINARY.partition("\n\n")[2]


class Project:
    """A directory with the glue and two tests, run in processes of their own."""

    def __init__(self, path):
        self.path = path
        (path / "conftest.py").write_text(CONFTEST)
        (path / "test_it.py").write_text(ORDINARY)

    def command(self, *args, **variables):
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "CI")}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run(
            [sys.executable, "-m", *args],
            cwd=self.path,
            env={**kept, "PYTHONPATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def run(self, *args, **variables):
        finished = self.command("pytest", *PLAIN, "--rootdir=.", *args, **variables)
        assert "INTERNALERROR" not in finished.stdout + finished.stderr
        return finished

    @property
    def files(self):
        return sorted((self.path / ".benchmarks").rglob("*.json"))

    def saved(self):
        (path,) = self.files
        return {b["fullname"]: b for b in json.loads(path.read_text())["benchmarks"]}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A project after one plain run, for tests that only look; ``stdout`` is what the run printed."""
    project = Project(tmp_path_factory.mktemp("first_run"))
    finished = project.run("--benchmark-json=out.json", REAL_MACHINE="1")
    assert finished.returncode == 0, finished.stdout
    project.stdout = finished.stdout
    return project


needs_the_command = pytest.mark.skipif(
    INSTALLED < (5, 1),
    reason="pytest-benchmark 5.0's own command cannot import a conftest.py on pytest 8.2 and newer",
)

OURS = {
    f"{engine}/burst::{metric}"
    for engine in ("baseline", "max-perf")
    for metric in (
        "ttft",
        "output_throughput",
        "device_memory_peak",
        "error_rate",
        "kv_cache_usage_peak",
        "preemptions",
    )
}


def test_a_run_saves_every_metric_with_a_value_beside_ordinary_benchmarks(first_run):
    ordinary = {"test_it.py::test_ordinary"} if "test_ordinary" in ORDINARY else set()
    assert set(first_run.saved()) == OURS | ordinary


def test_a_stored_metric_carries_raw_samples_and_what_it_takes_to_read_them(first_run):
    stored = first_run.saved()["baseline/burst::ttft"]
    assert stored["stats"]["data"] == pytest.approx([0.1 + i / 100 for i in range(50)])
    assert stored["stats"]["mean"] == pytest.approx(0.345)
    assert stored["name"] == "baseline/burst::ttft"
    assert stored["group"] == "ttft [s]"
    assert stored["param"] == "baseline/burst"
    assert stored["extra_info"] == {
        "vllmperf_schema": 1,
        "duration_s": 1.0,
        "experiment": "",
        "metric": "ttft",
        "unit": "s",
        "better": "lower",
        "engine": "baseline",
        "workload": "burst",
        "model": "tinymath",
        "kind": "load",
        "invalid": ["a doubt"],
        "n": 50,
        "hardware": "NVIDIA H200",
        "exit_code": 1,
        "outcomes": {"ttft_mean": "FAIL"},
    }


def test_outcomes_stay_with_their_own_metric_and_engine(first_run):
    saved = first_run.saved()
    assert saved["baseline/burst::output_throughput"]["extra_info"]["outcomes"] == {"output_throughput": "PASS"}
    assert saved["max-perf/burst::output_throughput"]["extra_info"]["outcomes"] == {}


def test_machine_info_has_no_momentary_clock(first_run):
    cpu = json.loads(first_run.files[0].read_text())["machine_info"]["cpu"]
    assert cpu
    assert not [key for key in cpu if key.startswith("hz_")]


@needs_the_command
def test_the_list_command_names_the_file(first_run):
    listed = first_run.command("pytest_benchmark", "list")
    assert listed.stdout.strip().endswith(first_run.files[0].name)


@needs_the_command
def test_the_compare_command_shows_our_metrics_in_their_own_units(first_run):
    compared = first_run.command("pytest_benchmark", "compare", "--columns=mean,rounds", "--group-by=group")
    assert compared.returncode == 0, compared.stderr
    for group, header in {
        "output_throughput [tok/s]": "Name (time in tok/s)",
        "device_memory_peak [B]": "Name (time in bytes)",
        "error_rate [ratio]": "Name (time in ratios)",
        "preemptions [count]": "Name (time in counts)",
        "ttft [s]": "Name (time in ms)",
    }.items():
        assert header in compared.stdout.split(f"benchmark '{group}'")[1].splitlines()[1]
    assert "4,800.0000" in compared.stdout


@needs_the_command
def test_a_group_of_several_units_says_so(first_run):
    compared = first_run.command("pytest_benchmark", "compare", "--columns=mean", "--group-by=param")
    assert compared.returncode == 0, compared.stderr
    assert "Name (time in mixed units)" in compared.stdout.split("benchmark 'baseline/burst'")[1]


def test_the_json_pytest_benchmark_writes_itself_contains_our_metrics(first_run):
    written = json.loads((first_run.path / "out.json").read_text())
    assert {b["fullname"] for b in written["benchmarks"]} >= OURS
    assert len(next(b for b in written["benchmarks"] if b["group"] == "ttft [s]")["stats"]["data"]) == 50


@pytest.mark.skipif("test_ordinary" not in ORDINARY, reason="before 5.3.1 its own fixture fails on pytest 9.2")
def test_its_terminal_table_leaves_our_metrics_out_and_ordinary_ones_in(first_run):
    assert "test_ordinary" in first_run.stdout.split("Name (time in")[1]
    assert "burst::" not in first_run.stdout
    assert "device_memory_peak" not in first_run.stdout


def test_comparing_shows_our_metrics_of_both_runs_with_true_units(project):
    alone = project.run("-k", "plain")
    assert "Name (time in" not in alone.stdout
    result = project.run("--benchmark-compare=0001", "-W", "error::pytest.PytestWarning")
    assert result.returncode == 0, result.stdout + result.stderr
    throughput = result.stdout.split("benchmark 'output_throughput [tok/s]'")[1].split("benchmark '")[0]
    assert "Name (time in tok/s)" in throughput
    assert "baseline/burst::output_throughput (0001" in throughput
    assert "baseline/burst::output_throughput (NOW)" in throughput


def test_compare_fail_still_sees_our_metrics(project):
    project.run("-k", "plain")
    result = project.run("-k", "plain", "--benchmark-compare=0001", "--benchmark-compare-fail=mean:20%", SLOWER="1.5")
    assert result.returncode != 0
    assert "baseline/burst::ttft" in result.stderr


def test_under_xdist_one_file_holds_our_metrics(project):
    pytest.importorskip("xdist")
    assert project.run("-n2").returncode == 0
    assert set(project.saved()) == OURS


def test_the_name_a_user_gives_the_run_is_kept_and_samples_are_saved(project):
    project.run("--benchmark-save=mine")
    assert [path.name for path in project.files] == ["0001_mine.json"]
    assert project.saved()["baseline/burst::ttft"]["stats"]["data"]


def test_disabled_benchmarks_save_nothing_but_the_json_asked_for(project):
    assert project.run("--benchmark-disable", "--benchmark-json=out.json").returncode == 0
    assert project.files == []
    written = json.loads((project.path / "out.json").read_text())
    assert {b["fullname"] for b in written["benchmarks"]} == OURS


def test_a_run_that_measured_nothing_is_as_quiet_as_without_us(project):
    result = project.run("-k", "plain", "-W", "error", NOTHING="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert project.files == []
    assert "Not saving anything" not in result.stdout + result.stderr


def test_a_blocked_pytest_benchmark_is_told_before_anything_runs(project):
    result = project.command("pytest", "-p", "no:benchmark")
    shown = result.stdout + result.stderr
    assert "HistoryError: history cannot be kept: the plugin pytest-benchmark is not loaded" in shown
    assert "remove '-p no:benchmark'" in shown


def test_recording_without_a_session_of_pytest_benchmark_is_an_error():
    with pytest.raises(HistoryError, match="the run cannot be stored: pytest-benchmark has no session here"):
        history.record(SimpleNamespace(), [], extra={})


def a_summary(**scalars):
    return Summary(
        engine="baseline",
        workload="burst",
        kind="load",
        model="tinymath",
        description="",
        requests=1,
        completed=1,
        failures={},
        duration_s=1.0,
        metrics=metric_values(distributions={}, scalars=scalars),
        invalid=(),
        warnings=(),
        facts={},
    )


def a_config(**session):
    """As much of a pytest config as a run that the user named (``--benchmark-save``) needs."""
    given = {"benchmarks": [], "save": "mine", "autosave": None, **session}
    return SimpleNamespace(_benchmarksession=SimpleNamespace(**given), getoption=lambda _name: False)


def test_a_subject_measured_twice_is_stored_under_two_names():
    config = a_config()
    history.record(config, [a_summary(goodput=1.0), a_summary(goodput=2.0)], extra={})
    stored = [(b.fullname, b.stats.data) for b in config._benchmarksession.benchmarks]
    assert stored == [("baseline/burst::goodput", [1.0]), ("baseline/burst#2::goodput", [2.0])]


def test_whatever_extra_holds_is_stored_as_plain_json():
    config = a_config()
    extra = {"vram": np.float64(2.5), "cards": (1, 2), "share": float("nan"), "log": Path("a/b")}
    history.record(config, [a_summary(goodput=1.0)], extra=extra)
    (benchmark,) = config._benchmarksession.benchmarks
    kept = {key: benchmark.extra_info[key] for key in extra}
    assert kept == {"vram": 2.5, "cards": [1, 2], "share": None, "log": "a/b"}
    assert type(kept["vram"]) is float


def test_nothing_measured_changes_nothing():
    config = a_config()
    history.record(config, [a_summary(goodput=None)], extra={})
    assert vars(config._benchmarksession) == {"benchmarks": [], "save": "mine", "autosave": None}


def test_a_pytest_benchmark_with_other_insides_is_named_with_its_version():
    config = a_config(benchmarks=None)
    with pytest.raises(HistoryError) as caught:
        history.record(config, [a_summary(goodput=1.0)], extra={})
    assert f"pytest-benchmark {version('pytest-benchmark')} works differently inside (AttributeError" in str(
        caught.value
    )
    assert "versions 5.0 to 5.3 are known to work" in str(caught.value)


def a_file(folder, name, *, datetime="2026-01-01T00:00:00+00:00", benchmarks=None):
    folder.mkdir(parents=True, exist_ok=True)
    ours = {
        "fullname": "baseline/burst::ttft",
        "stats": {"data": [0.1, 0.2], "mean": 0.15},
        "extra_info": {"vllmperf_schema": 1, "metric": "ttft", "unit": "s", "engine": "baseline", "workload": "burst"},
    }
    content = {"datetime": datetime, "machine_info": {}, "benchmarks": [ours] if benchmarks is None else benchmarks}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_saved_runs_read_back_as_recorded(first_run):
    read = history.stored_runs(first_run.path / ".benchmarks")
    assert read.warnings == ()
    (run,) = read.runs
    assert run.path == first_run.files[0]
    assert {m.fullname for m in run.metrics} == OURS
    (memory,) = [m for m in run.metrics if m.fullname == "baseline/burst::device_memory_peak"]
    assert (memory.metric, memory.unit, memory.engine, memory.samples) == (
        "device_memory_peak",
        "B",
        "baseline",
        (2.0**34,),
    )
    assert memory.extra_info["hardware"] == "NVIDIA H200"


def test_runs_come_oldest_first_whatever_folder_they_are_in(tmp_path):
    newer = a_file(tmp_path / "A", "0001_x.json", datetime="2026-02-01T00:00:00+00:00")
    older = a_file(tmp_path / "B", "0007_x.json", datetime="2026-01-01T00:00:00+00:00")
    assert [run.path for run in history.stored_runs(tmp_path).runs] == [older, newer]


def test_a_clock_that_was_set_back_changes_no_order(tmp_path):
    """D04."""
    first = a_file(tmp_path / "A", "0001_x.json", datetime="2026-03-29T03:30:00+00:00")
    second = a_file(tmp_path / "A", "0002_x.json", datetime="2026-03-29T02:10:00+00:00")
    other = a_file(tmp_path / "B", "0001_x.json", datetime="2026-03-29T03:00:00+00:00")
    third = a_file(tmp_path / "A", "0003_x.json", datetime="2026-03-29T04:00:00+00:00")
    assert [run.path for run in history.stored_runs(tmp_path).runs] == [other, first, second, third]


def test_a_storage_that_does_not_exist_holds_no_runs(tmp_path):
    assert history.stored_runs(tmp_path / "none") == history.StoredRuns(runs=(), warnings=())


OURS_WITHOUT_UNIT = {"fullname": "x", "stats": {"data": [1.0]}, "extra_info": {"vllmperf_schema": 1, "metric": "ttft"}}
OURS_WITHOUT_SAMPLES = {
    "fullname": "x",
    "stats": {"mean": 1.0},
    "extra_info": {"vllmperf_schema": 1, "metric": "ttft", "unit": "s", "engine": "e", "workload": "w"},
}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "truncated"),
        (b'{"benchmarks": [{"fullna', "truncated"),
        (b"\xff\xfe not json", "malformed"),
        (b'{"datetime": "2026"}', "missing required field `benchmarks`"),
        (b'{"datetime": 1, "benchmarks": []}', "Expected `str`, got `int`"),
        (json.dumps({"datetime": "2026", "benchmarks": [OURS_WITHOUT_UNIT]}).encode(), "'x' lacks unit, engine, work"),
        (json.dumps({"datetime": "2026", "benchmarks": [OURS_WITHOUT_SAMPLES]}).encode(), "'x' has no samples"),
    ],
)
def test_an_unreadable_file_is_skipped_with_a_warning_that_names_it(tmp_path, content, said):
    """D03."""
    good = a_file(tmp_path / "Linux", "0001_good.json")
    bad = tmp_path / "Linux" / "0002_bad.json"
    bad.write_bytes(content)
    read = history.stored_runs(tmp_path)
    assert [run.path for run in read.runs] == [good]
    (warning,) = read.warnings
    assert f"history file {bad} was skipped, it cannot be read: " in warning
    assert said in warning


def test_ordinary_benchmarks_in_a_file_are_passed_over(tmp_path):
    ordinary = {"fullname": "test_x.py::test_y", "stats": {"mean": 1.0}, "extra_info": {"metric": "mine"}}
    a_file(tmp_path / "Linux", "0001_x.json", benchmarks=[ordinary])
    read = history.stored_runs(tmp_path)
    assert read.warnings == ()
    assert read.runs[0].metrics == ()
