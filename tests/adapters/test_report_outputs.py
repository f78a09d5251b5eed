"""What machines read of a run: JSON Schema, Prometheus text and push, CSV, GitHub's summary and annotations."""

import csv
import http.server
import json
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import report_samples as sample
import tomlkit
from prometheus_client.parser import text_string_to_metric_families

from pytest_vllmperf.adapters import prometheus_text, writers
from pytest_vllmperf.adapters.github_actions import annotation_commands, append_step_summary, limit_line
from pytest_vllmperf.adapters.request_tables import COLUMNS, requests_path, write_requests
from pytest_vllmperf.domain.report import Report
from pytest_vllmperf.domain.summary import metric_values
from pytest_vllmperf.errors import ConfigError
from pytest_vllmperf.recall import find_report
from pytest_vllmperf.reporting import DEFAULT_FORMATS, parse_formats, write_reports

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from streams import answered, failed, load_run

ROOT = Path(__file__).parents[2]
ACTIONS = {"GITHUB_ACTIONS": "true"}


@pytest.fixture
def report() -> Report:
    return sample.troubled()


# ---------------------------------------------------------------------------- JSON Schema


@pytest.mark.parametrize("kind", ["troubled", "hostile", "empty"])
def test_every_report_keeps_to_the_schema(report: Report, tmp_path: Path, kind: str) -> None:
    if kind == "hostile":
        report = sample.with_text(report, lambda text: "\x00<\u202e" + text)
    elif kind == "empty":
        report = replace(report, engines=(), summaries=(), verdicts=(), problems=(), sections=())
    writers.write_json(report, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(written, writers.report_schema(), cls=jsonschema.Draft202012Validator)
    assert written["schema_version"] == writers.SCHEMA_VERSION


def test_the_schema_refuses_what_a_report_is_not(report: Report, tmp_path: Path) -> None:
    writers.write_json(report, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    written["verdicts"][0]["outcome"] = "MAYBE"
    with pytest.raises(jsonschema.ValidationError, match="MAYBE"):
        jsonschema.validate(written, writers.report_schema(), cls=jsonschema.Draft202012Validator)


def without_words(schema: object) -> object:
    """The schema less its descriptions, as JSON."""
    if isinstance(schema, dict):
        return {key: without_words(value) for key, value in schema.items() if key != "description"}
    return [without_words(value) for value in schema] if isinstance(schema, (list, tuple)) else schema


def test_what_was_published_under_this_version_still_holds() -> None:
    published = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    now = writers.report_schema()
    assert published["$id"] == now["$id"], "a new version: vllmperf report --schema > docs/report.schema.json"
    for name, definition in {**published["$defs"], "Report": published}.items():
        kept = (now["$defs"][name] if name != "Report" else now).get("properties", {})
        for key, promised in definition.get("properties", {}).items():
            assert without_words(kept[key]) == without_words(promised), f"{name}.{key} changed: raise SCHEMA_VERSION"


# ---------------------------------------------------------------------------- Prometheus


def families(text: str) -> dict[str, list]:
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


def test_prometheus_text_has_every_sound_value_with_unit_and_labels(report: Report, tmp_path: Path) -> None:
    prometheus_text.write_metrics(report, tmp_path / "metrics.prom")
    found = families((tmp_path / "metrics.prom").read_text(encoding="utf-8"))
    ttft = {s.labels["engine"]: s for s in found["vllmperf_ttft_mean_seconds"]}
    summary = report.summaries[0]
    assert ttft["baseline"].value == summary.metrics["ttft_mean"].value
    assert ttft["baseline"].labels == {
        "engine": "baseline",
        "workload": "burst",
        "model": "tinymath",
        "hardware": "NVIDIA H200",
    }
    assert {s.labels["workload"] for s in found["vllmperf_output_throughput_tokens_per_second"]} == {"burst"}
    assert "heavy" not in {s.labels["workload"] for family in found.values() for s in family if "model" in s.labels}
    assert "vllmperf_device_memory_peak_bytes" not in found, "a missing value is missing, not zero"
    assert found["vllmperf_exit_code"][0].value == 1
    outcomes = {(s.labels["engine"], s.labels["metric"]): s.labels["outcome"] for s in found["vllmperf_verdict"]}
    assert outcomes["baseline", "ttft_mean"] == "FAIL"
    assert ("baseline", "ttft_p99") not in outcomes


class Gateway(http.server.BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.server.got = (self.path, self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


def test_metrics_are_pushed_to_a_gateway(report: Report, tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert prometheus_text.push_metrics(report, f"http://127.0.0.1:{server.server_port}") is None
        thread.join(timeout=30)
        path, body = server.got
    assert path == "/metrics/job/vllmperf"
    prometheus_text.write_metrics(report, tmp_path / "metrics.prom")
    assert families(body) == families((tmp_path / "metrics.prom").read_text(encoding="utf-8"))


def test_a_gateway_that_is_down_is_told_and_raises_nothing(report: Report) -> None:
    said = prometheus_text.push_metrics(report, "http://127.0.0.1:9")
    assert said is not None
    assert said.startswith("metrics were not pushed to http://127.0.0.1:9: URLError")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "gopher://gateway:9091"])
def test_what_is_no_gateway_is_refused_before_anything_starts(url: str) -> None:
    with pytest.raises(ConfigError, match="give one such as http://gateway:9091"):
        prometheus_text.check_gateway(url)
    assert prometheus_text.check_gateway("gateway:9091") == "http://gateway:9091"


# ---------------------------------------------------------------------------- CSV


def test_a_csv_has_a_row_for_every_request_in_seconds_from_the_first_dispatch(tmp_path: Path) -> None:
    first = answered(dispatched_ms=10, written_ms=11, intended_ms=4, events_ms=(31, 41), tokens=(2, 1))
    path = requests_path(tmp_path, "max perf/x", "burst")
    write_requests(load_run(first, failed(detail="=HYPERLINK(1)\nsecond line")), path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert path == tmp_path / "requests" / "max_perf_x-burst.csv"
    assert tuple(rows[0]) == COLUMNS
    assert (rows[0]["dispatched_s"], rows[1]["dispatched_s"]) == ("0.010000000", "0.000000000")
    assert (rows[0]["first_token_s"], rows[0]["output_tokens"], rows[0]["outcome"]) == ("0.031000000", "3", "success")
    assert (rows[1]["outcome"], rows[1]["first_token_s"]) == ("timeout", "")
    assert rows[1]["detail"] == "'=HYPERLINK(1) second line"


# ---------------------------------------------------------------------------- GitHub


def test_the_report_is_appended_to_the_step_summary(report: Report, tmp_path: Path) -> None:
    writers.write_markdown(report, tmp_path / "report.md")
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    assert append_step_summary(tmp_path / "report.md", {"GITHUB_STEP_SUMMARY": str(summary)}) == summary
    assert summary.read_text() == "before\n" + (tmp_path / "report.md").read_text() + "\n"
    assert append_step_summary(tmp_path / "report.md", {}) is None


def test_a_report_too_long_for_a_step_summary_is_cut_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("ä line\n" * 300_000, encoding="utf-8")
    summary = append_step_summary(tmp_path / "report.md", {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")})
    assert summary is not None
    text = summary.read_text(encoding="utf-8")
    assert len(text.encode()) < 2**20
    assert text.rstrip().endswith("Cut at 1000000 bytes; the whole report is report.md.")


def test_annotations_name_what_is_wrong_worst_first(report: Report) -> None:
    commands = annotation_commands(report, ACTIONS)
    assert commands[0].startswith("::error title=engine broken failed::exit code 1")
    assert "::error file=thresholds.toml,title=FAIL baseline / burst%3A ttft_mean::TTFT mean exceeds it" in commands
    assert "::error title=INVALID max-perf / heavy%3A ttft_mean%2C tpot_mean::0 of 50 requests completed" in commands
    assert any(c.startswith("::warning file=thresholds.toml,title=INCONCLUSIVE max-perf / burst") for c in commands)
    assert commands[-1].startswith("::warning file=thresholds.toml,title=vllmperf::thresholds.toml: limit[4].accuracy")
    assert annotation_commands(report, {}) == ()


LIMITS = """version = 1

[[limit]]  # the first
match = { workload = "burst" }
"ttft_mean" = { max = "100 ms" }
tpot_p95.max = "600 ms"

[limit.ttft_p90]
max = "1 s"

[quality.tasks.gsm8k]
tpot_mean = 1

[[limit]]
output_throughput = { min = "1 tok/s" }
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("limit[1].ttft_mean", 5),
        ("limit[1].tpot_p95", 6),
        ("limit[1].ttft_p90", 8),
        ("limit[1].tpot_mean", 3),
        ("limit[1]", 3),
        ("limit[2].output_throughput", 15),
        ("limit[3].ttft_mean", None),
        ("defaults.launches", None),
    ],
)
def test_a_limit_is_found_at_its_line(place: str, line: int | None) -> None:
    assert limit_line(LIMITS.splitlines(), place) == line


def test_annotations_stand_at_the_line_of_the_limit(report: Report, tmp_path: Path) -> None:
    limits = tmp_path / "suites" / "gate.toml"
    limits.parent.mkdir()
    limits.write_text(LIMITS, encoding="utf-8")
    environment = {**ACTIONS, "GITHUB_WORKSPACE": str(tmp_path)}
    commands = annotation_commands(report, environment, thresholds=limits)
    assert any(c.startswith("::error file=suites/gate.toml,line=5,title=FAIL baseline / burst") for c in commands)
    assert any(c.startswith("::warning file=suites/gate.toml,line=6,title=INCONCLUSIVE max-perf") for c in commands)
    assert commands[-1].startswith("::warning file=suites/gate.toml,title=vllmperf::thresholds.toml: limit[4].accuracy")


def test_limits_of_this_repository_are_found_at_their_lines() -> None:
    text = (ROOT / "thresholds.toml").read_text(encoding="utf-8")
    lines = text.splitlines()
    for number, table in enumerate(tomlkit.parse(text)["limit"], 1):
        for metric in table:
            line = limit_line(lines, f"limit[{number}].{metric}")
            assert line is not None
            assert lines[line - 1].split()[0] == metric


def test_no_text_starts_a_command_of_its_own(report: Report) -> None:
    hostile = sample.with_text(report, lambda text: f"x\n::set-output name=a::b\r\n100% {text}")
    commands = annotation_commands(hostile, ACTIONS)
    assert all("\n" not in c and "\r" not in c and c.startswith(("::error ", "::warning ")) for c in commands)
    assert any("100%25" in c for c in commands)


def test_more_than_github_shows_are_counted(report: Report) -> None:
    many = tuple(replace(report.verdicts[0], workload=f"w{i}") for i in range(30))
    errors = [c for c in annotation_commands(replace(report, verdicts=many), ACTIONS) if c.startswith("::error")]
    assert len(errors) == 10
    assert errors[-1] == "::error title=vllmperf::… and 22 more errors in the report"


# ---------------------------------------------------------------------------- size


def with_gaps(report: Report, samples: tuple[float, ...]) -> Report:
    """``report`` with these gaps between tokens in its first measurement."""
    first = report.summaries[0]
    gaps = metric_values(distributions={"itl": list(samples)}, scalars={})
    return replace(report, summaries=(replace(first, metrics={**first.metrics, **gaps}), *report.summaries[1:]))


def test_gaps_between_tokens_are_thinned_and_nothing_else(report: Report, tmp_path: Path) -> None:
    gaps = np.random.default_rng(1).lognormal(-4, 0.5, 40_000)
    whole = with_gaps(report, tuple(gaps.tolist()))
    writers.write_json(whole, tmp_path / "report.json")
    read = find_report(str(tmp_path / "report.json"), directory=tmp_path, storage=tmp_path / "none")
    assert read.verdicts == whole.verdicts
    kept = read.summaries[0].metrics["itl"]
    assert (kept.n, len(kept.samples)) == (40_000, 1001)
    for share in (0, 0.01, 0.5, 0.9, 0.99, 1):
        assert np.quantile(kept.samples, share) == pytest.approx(np.quantile(gaps, share), rel=0.01)
    assert read.summaries[0].metrics["itl_p99"] == whole.summaries[0].metrics["itl_p99"]
    assert replace(read.summaries[0], metrics={**read.summaries[0].metrics, "itl": None}) == replace(
        whole.summaries[0],
        metrics={**whole.summaries[0].metrics, "itl": None},
        facts=read.summaries[0].facts,
    )
    assert (tmp_path / "report.json").stat().st_size < 150_000


def test_lists_of_numbers_take_one_line_and_texts_that_look_like_them_stay(report: Report, tmp_path: Path) -> None:
    trap = "[\n 1,\n 2\n]"
    writers.write_json(sample.with_text(with_gaps(report, (0.1, 0.2)), lambda text: trap + text), tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert '"samples": [0.1, 0.2]' in text
    assert json.loads(text)["summaries"][0]["workload"] == trap + "burst"
    assert not re.search(r"^ +[0-9.e-]+,?$", text, re.MULTILINE)


# ---------------------------------------------------------------------------- which


def test_only_what_was_asked_for_is_written(report: Report, tmp_path: Path) -> None:
    written = write_reports(report, tmp_path, formats=("json", "prom"))
    assert [path.name for path in written] == ["report.json", "metrics.prom"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.prom", "report.json"]


def test_formats_are_read_in_any_order_and_a_wrong_one_names_all() -> None:
    assert parse_formats("json, html,md") == DEFAULT_FORMATS
    with pytest.raises(ConfigError) as error:
        parse_formats("html,pdf")
    assert str(error.value) == (
        "--vllmperf-report=html,pdf: unknown: pdf; allowed: html, md, json, prom, csv, separated by commas"
    )
    with pytest.raises(ConfigError, match="no format named"):
        parse_formats(" , ")
