"""Stored runs: suspicion in the report, the relative gate that answers it, vllmperf trend and accept."""

import datetime as dt
import json
import random

import pytest

from pytest_vllmperf.cli import main

SUITE = """
def test_first_token(vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_p50")
"""
SLOW = [{"name": "one", "args": {"fake-ttft-ms": 200.0}}]


@pytest.fixture
def history(project):
    """Fourteen stored runs of an engine that was four times as fast, made from one real run of the slow one."""
    project.write(engines=SLOW, suite=SUITE, thresholds='version = 1\n[[limit]]\nttft_p50 = { max = "60 s" }\n')
    assert project.run().ret == 0
    (path,) = project.history
    stored, chance = json.loads(path.read_text()), random.Random(1)
    stored["benchmarks"] = [b for b in stored["benchmarks"] if b["fullname"] == "one/tiny::ttft"]
    path.unlink()
    for night in range(14):
        factor = 0.25 * chance.uniform(0.97, 1.03)
        when = dt.datetime(2026, 1, 1 + night, 2)
        copy = json.loads(json.dumps(stored))
        copy["datetime"] = when.isoformat()
        (benchmark,) = copy["benchmarks"]
        benchmark["stats"]["data"] = [x * factor for x in benchmark["stats"]["data"]]
        benchmark["extra_info"]["subject"]["args"] = {"fake-ttft-ms": 50.0}
        (path.parent / f"{night + 1:04}_night.json").write_text(json.dumps(copy))
    return project


def section(project):
    return next(s for s in project.report["sections"] if s["id"] == "history")


def test_a_run_worse_than_predicted_is_suspicious_and_fails_nothing(history):
    assert history.run().ret == 0
    found = section(history)
    assert any(s.startswith("one/tiny/ttft_p50: +") and "suspicious" in s for s in found["sentences"])
    assert "args changed" in found["sentences"][0]
    assert found["kind"] == "inconclusive"


def test_a_suspicion_is_answered_by_fresh_launches_when_asked(history):
    result = history.run("--vllmperf-confirm", "--vllmperf-pairs=2")
    verdicts = {(v["engine"], v["against"], v["metric"]): v for v in history.report["verdicts"]}
    answer = verdicts["one", "one.before", "ttft_p50"]
    assert answer["change"] > 1
    assert answer["outcome"] in ("FAIL", "INCONCLUSIVE"), result.stdout.str()  # two pairs are few
    assert history.launches()["one.before"] >= 2


def test_trend_finds_the_step_and_accept_resets_it(history, capsys):
    for _ in range(4):
        assert history.run().ret == 0
    assert main(["trend", "-C", str(history.path)]) == 1
    told = capsys.readouterr().out
    today = dt.datetime.now(dt.timezone.utc).date().isoformat()
    assert f"since {today} (raw values, no control engine" in told
    assert "args changed" in told
    assert main(["accept", "-C", str(history.path), "one/tiny/*", "--since", today, "--reason", "meant"]) == 0
    assert main(["trend", "-C", str(history.path), "--all"]) == 0
    assert f"14 runs left out: before the shift accepted for {today}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("series", "since", "told"),
    [
        ("one/tiny", "2026-01-01", "must be ENGINE/WORKLOAD/METRIC"),
        ("one/tiny/tfft", "2026-01-01", "metric 'tfft' is unknown"),
        ("one/tiny/ttft_p50", "yesterday", "--since yesterday: must be a date such as 2026-11-20"),
    ],
)
def test_what_cannot_be_accepted(tmp_path, capsys, series, since, told):
    assert main(["accept", "-C", str(tmp_path), series, "--since", since, "--reason", "x"]) == 2
    assert told in capsys.readouterr().err
