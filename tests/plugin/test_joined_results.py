"""Results on disk as each test ends, and runs joined afterwards: what a killed run or a shard measured is not lost."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

KILLED = """
import os
import signal

def test_first_token(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")

def test_same_again(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "output_throughput")

def test_last(vllm_engine):
    if os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def vllmperf(project, *arguments):
    command = [sys.executable, "-m", "pytest_vllmperf.cli", *arguments, "-C", str(project.path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def values(path):
    """Everything a history file holds that does not change from run to run."""
    benchmarks = json.loads(path.read_text())["benchmarks"]
    kept = (
        *("metric", "unit", "better", "engine", "workload", "model", "kind", "hardware", "fingerprint"),
        *("conditions", "subject", "baseline"),
    )
    lasting = (b for b in benchmarks if not b["extra_info"]["metric"].startswith("steady_"))  # found in some short runs
    return {b["fullname"]: (b["group"], *map(b["extra_info"].get, kept)) for b in lasting}


def test_a_killed_run_loses_only_the_test_in_flight(project, monkeypatch):
    """L01, C05."""
    project.write(suite=KILLED)
    monkeypatch.setenv("KILL", "1")
    assert project.run().ret < 0
    journal = project.path / "reports/latest/results.jsonl"
    tests = [line for line in lines(journal) if line["what"] == "test" and line["when"] == "call"]
    assert [line["test"] for line in tests] == [
        "suites/test_it.py::test_first_token[one]",
        "suites/test_it.py::test_same_again[one]",
    ]
    assert [len(line["found"]["summaries"]) for line in tests] == [1, 0], "a shared measurement is written once"
    with journal.open("a") as file:
        file.write('{"what": "test", "found": {"summ')  # as if the machine had stopped while writing

    monkeypatch.delenv("KILL")
    again = project.run()
    assert again.ret == 0, again.stdout.str()
    kept = "reports/latest/results-killed-1.jsonl"
    again.stdout.fnmatch_lines([f"vllmperf: an earlier run was killed; *vllmperf merge --partial {kept}"])
    assert lines(journal)[-1]["what"] == "end"

    done = vllmperf(project, "merge", "--partial", kept)
    assert done.returncode == 2, done.stderr
    assert "this run was killed, or is still going on: the test in flight is missing" in done.stdout
    assert "is broken or cut off, and left out" in done.stdout
    whole, rescued = project.history
    rescued_values, whole_values = values(rescued), values(whole)
    assert set(rescued_values) == set(whole_values)
    assert not any(entry[-1] for entry in rescued_values.values()), "never a baseline"
    assert all(entry[-1] for entry in whole_values.values())


def test_a_run_that_ended_is_overwritten_by_the_next(project):
    project.write()
    assert project.run().ret == 0
    assert project.run().ret == 0
    assert [path.name for path in (project.path / "reports/latest").glob("*.jsonl")] == ["results.jsonl"]


TWO = [{"name": "one"}, {"name": "two"}]
LIMITS = """
version = 1
[[limit]]
match = { engine = "one" }
ttft_mean = { max = "60 s" }
[[limit]]
match = { engine = "two" }
ttft_mean = { max = "60 s" }
output_throughput = { min = "0.001 tok/s" }
"""


@pytest.fixture
def shards(project):
    """One engine in each of two runs, and both in a third."""
    project.write(engines=TWO, thresholds=LIMITS)
    for name in ("one", "two"):
        result = project.run(f"--vllmperf-engine={name}", f"--vllmperf-report-dir=shard-{name}", "--benchmark-disable")
        assert result.ret == 0, result.stdout.str()
    assert not project.history
    return project


def test_shards_joined_are_one_history_entry_and_one_report_like_a_run_of_both(shards):
    project = shards
    assert project.run().ret == 0
    joined = vllmperf(project, "merge", "shard-one", "shard-two", "--json")
    assert joined.returncode == 0, joined.stdout + joined.stderr
    answer = json.loads(joined.stdout)
    whole, merged = project.history
    assert answer["history"] == [str(merged)]
    assert merged.name == "0002_merged.json"
    assert values(merged) == values(whole)
    assert all(entry[-1] for entry in values(merged).values())

    def facts(report):
        return (
            [(e["name"], e["launches"], e["state"]) for e in report["engines"]],
            sorted((v["engine"], v["workload"], v["metric"], v["outcome"]) for v in report["verdicts"]),
            [(s["engine"], s["workload"], s["requests"]) for s in report["summaries"]],
            report["problems"],
        )

    assert facts(json.loads((project.path / "reports/merged/report.json").read_text())) == facts(project.report)
    assert (project.path / "reports/merged/index.html").exists()
    if version("pytest-benchmark").startswith("5.0."):
        return  # its own command cannot import a conftest.py on pytest 8.2 and newer
    compared = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", "0001", "0002"],
        cwd=project.path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    assert "one/tiny::ttft" in compared.stdout


def test_a_shard_that_is_missing_is_noticed(shards):
    alone = vllmperf(shards, "merge", "shard-two", "--no-history")
    assert alone.returncode == 0, "limits of engines that did not run are not asked for"
    suite = "def test_first_token(vllm_measure, vllm_check):\n    vllm_check(vllm_measure('tiny'), 'ttft_mean')\n"
    shards.write(engines=TWO, thresholds=LIMITS, suite=suite)
    shards.run("-k", "first_token", "--vllmperf-report-dir=part", "--benchmark-disable")
    part = vllmperf(shards, "merge", "part", "--no-history")
    assert part.returncode == 12
    assert "output_throughput ≥ 0.001 tok/s applies here, but output_throughput was never judged" in part.stdout
    assert vllmperf(shards, "merge", "part", "--no-history", "--partial").returncode == 0


def test_runs_of_other_hardware_stand_side_by_side_and_in_their_own_history(shards):
    elsewhere = shards.path / "elsewhere" / "results.jsonl"
    elsewhere.parent.mkdir()
    text = (shards.path / "shard-one" / "results.jsonl").read_text()
    here = json.loads(text.splitlines()[0])["environment"]
    elsewhere.write_text(text.replace(here["hardware"], "NVIDIA H200").replace(here["host"], "gpu-7"))
    joined = vllmperf(shards, "merge", "shard-one", "elsewhere")
    assert joined.returncode == 0, joined.stdout + joined.stderr
    report = json.loads((shards.path / "reports/merged/report.json").read_text())
    assert [e["name"] for e in report["engines"]] == ["one", "one@gpu-7"]
    folders = {path.parent.name: set(values(path)) for path in shards.history}
    assert "NVIDIA-H200" in folders
    assert len(folders) == 2
    assert len({frozenset(names) for names in folders.values()}) == 1, "in history every engine has its own name"


def test_runs_judged_by_other_limits_are_not_joined(shards):
    journal = shards.path / "shard-two" / "results.jsonl"
    journal.write_text(journal.read_text().replace('"maximum": 60.0', '"maximum": 61.0'))
    refused = vllmperf(shards, "merge", "shard-one", "shard-two")
    assert refused.returncode == 2
    assert "was judged by other limits than" in refused.stderr
    assert "need one and the same thresholds.toml" in refused.stderr


def test_a_journal_from_before_conditions_were_written_is_read(project):
    project.write(engines=TWO, thresholds=LIMITS)
    assert project.run("--benchmark-disable").ret == 0
    journal = project.path / "reports/latest/results.jsonl"
    old = [{k: v for k, v in line.items() if k not in ("conditions", "subjects")} for line in lines(journal)]
    assert old != lines(journal)
    journal.write_text("".join(json.dumps(line) + "\n" for line in old))
    read = vllmperf(project, "merge", "reports/latest", "--no-history")
    assert read.returncode == 0, read.stdout + read.stderr


def test_what_is_no_run_is_refused_by_name(project):
    (project.path / "nothing").mkdir()
    refused = vllmperf(project, "merge", "nothing")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "nothing: there are no results of a run here; name a report directory" in refused.stderr
