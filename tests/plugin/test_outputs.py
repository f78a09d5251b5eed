"""Formats, CI and JUnit through a whole run."""

import xml.etree.ElementTree as ET


def test_every_format_is_written_where_asked_and_github_is_told(project, monkeypatch, tmp_path):
    project.write(
        thresholds='version = 1\n[[limit]]\nttft_mean = { max = "1 ns" }\noutput_throughput = { min = 0.1 }\n'
    )
    (project.path / "thresholds.toml").write_text(
        'version = 1\n[[limit]]\nttft_mean = { max = "1 ns" }\noutput_throughput = { min = "0.001 tok/s" }\n'
    )
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = project.run("--vllmperf-report=html,md,json,csv,prom", "--junitxml=junit.xml")
    assert result.ret == 1
    reports = project.path / "reports" / "latest"
    for name in ("index.html", "report.md", "report.json", "metrics.prom", "requests/one-tiny.csv"):
        assert (reports / name).stat().st_size > 0, name
    assert len((reports / "requests/one-tiny.csv").read_text().splitlines()) == 7
    assert summary.read_text() == (reports / "report.md").read_text() + "\n"
    result.stdout.fnmatch_lines(
        [
            "Report: reports/latest/index.html, *metrics.prom, reports/latest/requests",
            "::error file=thresholds.toml,line=3,*",
        ]
    )
    cases = {case.get("name"): case for case in ET.parse(project.path / "junit.xml").iter("testcase")}
    first = {p.get("name"): p.get("value") for p in cases["test_first_token[one]"].iter("property")}
    assert first["one/tiny::ttft_mean verdict"] == "FAIL"
    value = next(v for v in project.report["verdicts"] if v["metric"] == "ttft_mean")["value"]
    assert float(first["one/tiny::ttft_mean [s]"]) == value


def test_an_unknown_format_is_a_usage_error(project):
    project.write()
    result = project.run("--vllmperf-report=pdf")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--vllmperf-report=pdf: unknown: pdf; allowed: html, md, json, prom, csv*"])


def test_a_gateway_that_is_down_changes_nothing_but_is_told(project):
    project.write()
    result = project.run("--vllmperf-push=http://127.0.0.1:9")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["! metrics were not pushed to http://127.0.0.1:9: URLError*"])


BROKEN_DRIVER = """
import pytest_vllmperf.adapters.gpu as gpu

gpu.problem = lambda: "NVML does not work (Driver/library version mismatch): memory is unknown"
"""


def test_a_driver_that_does_not_work_is_told_at_once_and_in_the_report(project):
    """V01."""
    project.write(files={"broken_driver.py": BROKEN_DRIVER})
    result = project.run("-p", "broken_driver")
    assert result.ret == 0
    said = "NVML does not work (Driver/library version mismatch): memory is unknown"
    assert [line.strip() for line in result.outlines].count(f"> {said}") == 1
    assert project.report["environment"]["warnings"][0] == said
