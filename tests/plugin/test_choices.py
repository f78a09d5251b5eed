"""Which configuration for which use: answered at the end of a run of two engines, by the file's rules."""

ENGINES = [
    {"name": "quick", "args": {"fake-ttft-ms": 5.0, "fake-itl-ms": 1.0}},
    {"name": "slow", "args": {"fake-ttft-ms": 300.0, "fake-itl-ms": 20.0}},
]
LIMITS = """
version = 1
[[limit]]
ttft_mean = { max = "60 s" }
output_throughput = { min = "0.001 tok/s" }

[[choice]]
use = "anything small"
workload = "tiny"
best = "ttft_mean"

[[choice]]
use = "everything at once"
workload = "tiny"
best = "output_throughput"
require = [{ metric = "host_memory_peak", max = "1 KB" }]
"""


SWEEP = """
[[sweep]]
workloads = ["tiny"]

[[sweep]]
engines = ["slow"]
workloads = ["ten-users", "tiny"]
"""
SWEPT = """
def test_it(vllm_swept, vllm_check):
    vllm_check(vllm_swept, "ttft_mean")
"""


def test_a_sweep_runs_the_pairs_its_tables_list_and_nothing_without_one(project):
    project.write(engines=ENGINES, thresholds=LIMITS + SWEEP, suite=SWEPT)
    listed = project.run("--collect-only", "-q").stdout.str()
    assert {line.partition("::")[2] for line in listed.splitlines() if "::" in line} == {
        "test_it[quick-tiny]",
        "test_it[slow-tiny]",
        "test_it[slow-ten-users]",
    }
    result = project.run("--vllmperf-workload=tiny")
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=2, deselected=2)
    project.write(engines=ENGINES, thresholds=LIMITS, suite=SWEPT)
    assert "2 deselected" in project.run().stdout.str()


def test_uses_are_answered_on_the_terminal_and_in_every_report(project):
    project.write(engines=ENGINES, thresholds=LIMITS)
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "Which configuration for which use: anything small: quick (TTFT mean * ms)",
            "Which configuration for which use: everything at once: none (quick: host memory peak * misses ≤ 1 KB; *",
        ]
    )
    section = next(section for section in project.report["sections"] if section["id"] == "choice")
    assert [table["title"] for table in section["tables"]] == ["Uses", "Pareto front: tiny"]
    latest = project.path / "reports/latest"
    for name in ("report.md", "index.html"):
        assert "anything small" in (latest / name).read_text(encoding="utf-8")
