"""--vllmperf-attribute: two engines taken apart, on real processes; left out where nobody asks."""

SUITE = """
def test_what(vllm_attribute):
    found = vllm_attribute("tiny", metrics=("ttft_mean", "tpot_mean"))
    assert [m.metric for m in found.metrics] == ["ttft_mean", "tpot_mean"]
"""
BASE = {"name": "base", "args": {"fake-ttft-ms": 20.0, "fake-itl-ms": 2.0}}
SLOW = {"name": "slow", "args": {"fake-ttft-ms": 80.0, "fake-itl-ms": 2.0, "fake-version": "1.0"}}
ASKED = "--vllmperf-attribute=base:slow"


def test_the_setting_behind_it_is_told_with_its_plan_and_in_the_report(project):
    project.write(engines=[BASE, SLOW], suite=SUITE, thresholds=None)
    result = project.run("-v", ASKED)
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "*base:slow: 2 settings differ: fake-ttft-ms 20.0 → 80.0; fake-version (default) → 1.0*",
            "*base:slow: plan: one factor at a time, 4 engines × 4 rounds = 16 launches, about * each)*",
            "*base:slow: launch 1 of 16, round 1: *",
            "*fake-ttft-ms explains +* of the +* TTFT mean (tiny)*",
        ]
    )
    section = next(s for s in project.report["sections"] if s["id"].startswith("attribution"))
    assert section["id"] == "attribution-base-slow"
    assert section["title"] == "What makes slow differ from base"
    assert section["sentences"][0].startswith("fake-ttft-ms explains +")
    effects = section["tables"][0]["rows"]
    assert [row[2] for row in effects if row[1] == "TTFT mean"] == ["everything", "fake-ttft-ms", "fake-version"]
    launches = next(t for t in section["tables"] if t["title"] == "Launches")
    assert len(launches["rows"]) == 16


def test_nothing_runs_unless_asked(project):
    project.write(engines=[BASE, SLOW], suite=SUITE, thresholds=None)
    result = project.run()
    assert "1 deselected" in result.stdout.str()


def test_a_wrong_pair_or_budget_is_told_at_once(project):
    project.write(engines=[BASE, SLOW], suite=SUITE, thresholds=None)
    for asked, told in (
        ("--vllmperf-attribute=base", "give two engines as BASE:CANDIDATE"),
        ("--vllmperf-attribute=base:fast", "no engine 'fast'; declared: base, slow"),
        ("--vllmperf-budget=soon", "--vllmperf-budget=soon:"),
    ):
        result = project.run(asked)
        assert result.ret == 4
        assert told in result.stderr.str() + result.stdout.str()


def test_equal_engines_fail_with_the_reason(project):
    project.write(engines=[BASE, {**BASE, "name": "slow"}], suite=SUITE, thresholds=None)
    result = project.run(ASKED)
    assert result.ret == 1
    assert "engines 'base' and 'slow' do not differ in any flag" in result.stdout.str()
