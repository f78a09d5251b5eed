"""Sections that others contribute to the report: from inside a test, and by a hook."""

LIMITS = """
version = 1
[[limit]]
ttft_mean = { max = "60 s" }
"""

SUITE = """
from pytest_vllmperf.domain.section import Cell, Section, Table
from pytest_vllmperf.stash import EVIDENCE

def test_something(request, vllm_measure, vllm_check):
    vllm_check(vllm_measure("tiny"), "ttft_mean")
    request.node.stash[EVIDENCE].sections["mine"] = Section(
        id="mine", title="From a test", tables=(Table(head=("a",), rows=(("x",), (Cell(text="y", value=1.0),))),)
    )
"""
HOOK = """
from pytest_vllmperf.domain.section import Section

def pytest_vllmperf_sections(config, report):
    count = len(report.verdicts)
    {then}
"""


def test_a_section_rides_on_the_test_and_the_hook_adds_its_own(project):
    project.write(
        suite=SUITE,
        thresholds=LIMITS,
        files={"more.py": HOOK.format(then="return [Section(id='own', title=f'{count} seen')]")},
    )
    assert project.run("-p", "more").ret == 0
    sections = {section["id"]: section for section in project.report["sections"]}
    assert sections["own"]["title"] == "2 seen"
    assert sections["mine"]["tables"][0]["rows"][0] == ["x"]
    assert sections["mine"]["tables"][0]["rows"][1][0]["value"] == 1.0


def test_a_hook_that_fails_is_told_of_and_loses_nothing(project):
    project.write(suite=SUITE, thresholds=LIMITS, files={"more.py": HOOK.format(then="raise ValueError('no idea')")})
    assert project.run("-p", "more").ret == 0
    told = "a section of the report could not be made: ValueError: no idea"
    assert told in project.report["problems"]
    assert [section["id"] for section in project.report["sections"]] == ["mine"]
    assert project.report["summaries"][0]["timeline"]["series"]["concurrency"]["values"]


def test_two_engines_of_an_ordinary_run_stand_side_by_side(project):
    slow = {"name": "two", "args": {"fake-ttft-ms": 80, "fake-itl-ms": 8}}
    project.write(engines=[{"name": "one"}, slow])
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*two beside one: *TTFT mean +* at tiny (one launch of each, unpaired: not a verdict)*"]
    )
    (section,) = [s for s in project.report["sections"] if s["id"] == "beside-one-two"]
    rows = {row[1]: row[-1] for row in section["tables"][0]["rows"]}
    assert rows["ttft_mean"]["text"] == rows["tpot_mean"]["text"] == "worse"
    assert "## two beside one" in (project.path / "reports/latest/report.md").read_text()
