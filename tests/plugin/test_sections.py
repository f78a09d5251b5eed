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
