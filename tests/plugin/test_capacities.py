"""vllm_capacity in a project: searched once, judged by a limit of the file, told and shown."""

SUITE = """
from pytest_vllmperf import ServiceLevel, Workload

CHAT = Workload(name="chat", input_tokens=16, output_tokens=4, requests=40, request_rate=40.0,
                service_level=ServiceLevel(e2el_s=30.0))

def test_it_takes_enough(vllm_capacity, vllm_check):
    vllm_check(vllm_capacity(CHAT, sweep=(0.5,)), "capacity_rps")

def test_it_is_searched_once(vllm_capacity):
    summary = vllm_capacity(CHAT)
    assert summary.facts["probes"] <= 12
    assert summary.experiment == "capacity"

def test_without_a_level(vllm_capacity):
    vllm_capacity("tiny")
"""
LIMITS = """
version = 1
[[limit]]
match = { engine = "one" }
capacity_rps = { min = "20 req/s" }
"""


def test_a_floor_in_the_file_judges_the_interval_of_one_search(project):
    project.write(suite=SUITE, thresholds=LIMITS)
    result = project.run("-v", "--vllmperf-budget=3 s")
    assert result.ret == 1, result.stdout.str()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*one: chat: capacity: probe 1 of 12 at most*",
            "*one: chat: capacity: 40 req/s: 100.0% of 40 requests met the service level*",
            "*capacity of 'tiny': the workload states no service level*",
            "*How much one can take: chat: one takes * of chat and more while 99 % of the requests meet E2EL ≤ 30 s*",
        ]
    )
    assert result.stdout.str().count("probe 1 of 12") == 1
    (verdict,) = (v for v in project.report["verdicts"] if v["metric"] == "capacity_rps")
    assert (verdict["outcome"], verdict["workload"]) == ("PASS", "chat")
    assert verdict["interval"]["low"] >= 40
    assert verdict["interval"]["high"] is None
    (section,) = project.report["sections"]
    assert section["id"] == "capacity-one-chat"
    assert [table["title"] for table in section["tables"]] == ["Loads"]


def test_a_ceiling_for_a_capacity_is_the_wrong_direction(project):
    project.write(suite=SUITE, thresholds=LIMITS.replace("min", "max"))
    result = project.run()
    assert result.ret == 4
    assert "higher capacity rps is better; write min" in result.stderr.str() + result.stdout.str()
