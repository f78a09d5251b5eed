"""What a run leaves behind for people and machines, compared whole with golden files."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from summaries import load_summary

from pytest_vllmperf.adapters.writers import terminal_table, write_json, write_markdown
from pytest_vllmperf.domain.environment import Environment, Gpu
from pytest_vllmperf.domain.evidence import Evidence
from pytest_vllmperf.domain.report import EngineReport, Report
from pytest_vllmperf.domain.summary import MetricValue
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Verdict

GOLDEN = Path(__file__).parent.parent / "golden"
ENVIRONMENT = Environment(
    hardware="NVIDIA H200",
    device="gpu",
    gpus=(Gpu(index=0, uuid="GPU-1", name="NVIDIA H200", memory_bytes=141 * 2**30),),
    driver="570.1",
    cpu="Example CPU",
    cores=16,
    memory_bytes=128 * 2**30,
    platform="Linux-6.1",
    python="3.11.7",
    packages={"vllm": "0.32.0", "torch": "2.13.0"},
    commit="0123abc",
    dirty=True,
    warnings=("the GPU's power limit is below its default",),
)


def summary(engine, workload, *, invalid=(), warnings=(), requests=50, completed=50, **scalars):
    return load_summary(
        distributions={"ttft": [0.5, 0.7]},
        scalars=scalars,
        engine=engine,
        workload=workload,
        model="tinymath",
        description="50 × 128/256 tokens, 50 at once",
        requests=requests,
        completed=completed,
        duration_s=3.2,
        invalid=invalid,
        warnings=warnings,
        facts={"input_tokens": 6400},
    )


def verdict(engine, workload, metric, outcome, value, reason, *, n=50, limit=None):
    known = limit is not None and Limit(
        metric=metric,
        maximum=0.6,
        minimum=None,
        tolerance=None,
        required=False,
        where=f"thresholds.toml: limit[1].{metric}",
        text=limit,
    )
    return Verdict(
        outcome=outcome,
        engine=engine,
        workload=workload,
        metric=metric,
        value=value,
        n=n,
        limit=known or None,
        reason=reason,
    )


def engine(name, state="measured", reason=None, command=("python", "-m", "serve", "--port", "1"), env=None):
    return EngineReport(
        name=name,
        model="tinymath",
        state=state,
        reason=reason,
        command=command,
        env=env or {},
        version="0.32.0" if state == "measured" else None,
        log_path=f"reports/latest/logs/{name}.log" if state != "skipped" else None,
        launches=0 if state == "skipped" else 1,
    )


RUN = Report(
    started_at="2026-01-02T03:04:05+00:00",
    duration_s=192.4,
    environment=ENVIRONMENT,
    engines=(
        engine("baseline", env={"VLLM_USE_V1": "1"}),
        engine("max-perf"),
        engine("broken", "failed", "exit code 1: unrecognized arguments: --no-such-flag"),
        engine("offload", "skipped", "requires a GPU with 40 GiB", command=()),
    ),
    summaries=(
        summary("baseline", "burst", output_throughput=4811.3, warnings=("failed requests: 1 timeout",), completed=49),
        summary("max-perf", "burst", invalid=("0 of 50 requests completed (50 timeout)",), completed=0),
        summary("max-perf", "startup", time_to_ready=41.3),
    ),
    verdicts=(
        verdict("baseline", "burst", "ttft_p95", Outcome.NOT_JUDGED, 0.7, "n = 50 (p95 needs 60)", limit="≤ 2 s"),
        verdict(
            "baseline",
            "burst",
            "ttft_mean",
            Outcome.FAIL,
            0.7,
            "TTFT mean 700 ms exceeds ≤ 600 ms by 17 %",
            limit="≤ 600 ms",
        ),
        verdict("baseline", "burst", "output_throughput", Outcome.PASS, 4811.3, "meets it", n=1, limit="≥ 4000 tok/s"),
        verdict("baseline", "burst", "kv_cache_usage_peak", Outcome.NOT_JUDGED, 0.31, "no limit matches", n=1),
        verdict("max-perf", "burst", "ttft_mean", Outcome.INVALID, None, "0 of 50 requests completed", n=0),
        verdict("max-perf", "burst", "tpot_mean", Outcome.INVALID, None, "0 of 50 requests completed", n=0),
    ),
    problems=("thresholds.toml: limit[4].accuracy applies here, but accuracy was never judged",),
    exit_code=1,
)

EVIL = "a | b\n# c <script>alert(1)</script> \x1b[31mred\x1b[0m [x](javascript:1) *y* `z` \\| \u202e$m$ & é"
HOSTILE = replace(
    RUN,
    engines=(engine("baseline", "failed", EVIL, command=("serve", f"--flag={EVIL}"), env={"A": EVIL}),),
    summaries=(replace(RUN.summaries[0], description=EVIL, invalid=(EVIL,), warnings=(EVIL, "1. first", "## x")),),
    verdicts=(verdict("baseline", "burst", "ttft_mean", Outcome.FAIL, 0.7, EVIL, limit=EVIL),),
    problems=(EVIL,),
    environment=replace(ENVIRONMENT, hardware=EVIL, warnings=("--- x", "_it_ snake_case"), gpus=(), commit=None),
)


def assert_golden(name, text):
    """Compare with ``tests/golden/<name>``; ``UPDATE_GOLDEN=1`` writes what is there now."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def markdown(report, tmp_path):
    write_markdown(report, tmp_path / "report.md")
    return (tmp_path / "report.md").read_text(encoding="utf-8")


def as_json(report, tmp_path):
    write_json(report, tmp_path / "report.json")
    return json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_the_markdown_report_of_a_mixed_run(tmp_path):
    assert_golden("report.md", markdown(RUN, tmp_path))


def test_the_markdown_report_of_a_hostile_run(tmp_path):
    assert_golden("report-hostile.md", markdown(HOSTILE, tmp_path))


def test_the_markdown_report_of_a_run_that_measured_nothing(tmp_path):
    nothing = replace(RUN, engines=(), summaries=(), verdicts=(), problems=("nothing was judged",), exit_code=12)
    assert_golden("report-nothing.md", markdown(nothing, tmp_path))


def test_the_markdown_report_shows_optimisations_that_are_asked_for_active_or_unknown(tmp_path):
    told = [
        ("prefix caching", "confirmed", "on", "on", "log | <b>says</b>"),
        ("chunked prefill", "confirmed", "on", "off", "log"),
        ("quantization", "refuted", "off", "awq", "log"),
        ("sleep mode", "refuted", "off", "off", "log"),
        ("async scheduling", "unknown", None, None, "no line"),
        ("compilation", "refuted", "off", None, "log"),
    ]
    evidence = tuple(
        Evidence(optimisation=name, state=state, value=value, requested=asked, proof=proof, source="log")
        for name, state, value, asked, proof in told
    )
    path = tmp_path / "report.md"
    write_markdown(replace(RUN, engines=(replace(engine("one"), evidence=evidence, warnings=("slow worker",)),)), path)
    text = path.read_text()
    assert text.partition("## Optimisations\n\n")[2].partition("\n\n")[0].splitlines() == [
        "| Engine | Optimisation | Asked | State | Active | Proof |",
        "| --- | --- | --- | --- | --- | --- |",
        "| one | prefix caching | on | confirmed | on | log \\| &lt;b&gt;says&lt;/b&gt; |",
        "| one | chunked prefill | off | **confirmed, not as asked** | on | log |",
        "| one | quantization | awq | **refuted, not as asked** | off | log |",
        "| one | sleep mode | off | refuted | off | log |",
        "| one | async scheduling |  | unknown |  | no line |",
    ]
    assert "- one: slow worker" in text


def test_the_terminal_table_of_a_mixed_run():
    assert_golden("terminal.txt", "\n".join(terminal_table(RUN)) + "\n")


def test_a_narrow_terminal_cuts_the_widest_columns_first():
    assert_golden("terminal-60.txt", "\n".join(terminal_table(RUN, width=60)) + "\n")


def test_the_terminal_table_of_a_hostile_run():
    assert_golden("terminal-hostile.txt", "\n".join(terminal_table(HOSTILE)) + "\n")


def test_a_run_without_engines_has_no_terminal_table():
    assert terminal_table(replace(RUN, engines=(), summaries=(), verdicts=())) == []


def test_the_verdict_is_the_last_word_of_its_line():
    lines = terminal_table(RUN)
    assert [line.split()[-1] for line in lines if "_mean" in line] == ["FAIL", "INVALID", "INVALID", "shown"]


@given(st.text(), st.integers(1, 200))
def test_no_terminal_line_is_wider_than_asked_or_holds_an_unprintable_character(text, width):
    hostile = replace(
        RUN,
        summaries=(replace(RUN.summaries[1], description=text, invalid=(text,)),),
        engines=(engine("x", "failed", text),),
        verdicts=(verdict("max-perf", "burst", "ttft_mean", Outcome.FAIL, 0.7, text, limit=text),),
    )
    for line in terminal_table(hostile, width=width):
        assert len(line) <= max(width, 40)
        assert line.isprintable()


UNESCAPED_PIPE = re.compile(r"(?<!\\)(?:\\\\)*\|")


@given(st.text())
def test_no_text_breaks_a_markdown_table_or_brings_html(tmp_path_factory, text):
    hostile = replace(RUN, verdicts=(verdict("baseline", "burst", "ttft_mean", Outcome.FAIL, 0.7, text, limit=text),))
    lines = markdown(hostile, tmp_path_factory.getbasetemp()).splitlines()
    (row,) = [line for line in lines if line.startswith("| baseline | burst |")]
    assert len(UNESCAPED_PIPE.findall(row)) == 8
    assert not re.search(r"<(?!/?code>)", "\n".join(lines))


def test_the_json_report_holds_everything(tmp_path):
    written = as_json(RUN, tmp_path)
    assert written["schema_version"] == 1
    assert written["headline"].startswith("Engine broken failed; 1 FAIL; 2 INVALID")
    assert written["exit_code"] == 1
    assert written["environment"]["gpus"][0]["uuid"] == "GPU-1"
    assert [e["state"] for e in written["engines"]] == ["measured", "measured", "failed", "skipped"]
    assert written["summaries"][0]["metrics"]["ttft"]["samples"] == [0.5, 0.7]
    assert written["verdicts"][1]["outcome"] == "FAIL"
    assert written["verdicts"][1]["limit"]["where"] == "thresholds.toml: limit[1].ttft_mean"


def test_the_json_report_has_no_nan(tmp_path):
    broken = MetricValue(name="goodput", value=math.nan, n=1, samples=(math.inf,), missing=None)
    written = as_json(replace(RUN, summaries=(replace(RUN.summaries[0], metrics={"goodput": broken}),)), tmp_path)
    assert written["summaries"][0]["metrics"]["goodput"]["value"] is None
    assert written["summaries"][0]["metrics"]["goodput"]["samples"] == [None]


@pytest.mark.parametrize("name", ["report.json", "report.md"])
def test_a_report_shows_no_secret(tmp_path, name):
    secretive = engine(
        "x", "failed", "401: sk-1234567", ("serve", "--api-key", "sk-1234567"), {"HF_TOKEN": "hf_abcdef"}
    )
    write = write_json if name.endswith("json") else write_markdown
    write(replace(RUN, engines=(secretive,)), tmp_path / name)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert "sk-1234567" not in text
    assert "hf_abcdef" not in text
    assert "401" in text


def test_an_undecodable_file_name_is_written_as_json_writes_it(tmp_path):
    written = as_json(replace(RUN, problems=("log \udcff.txt",)), tmp_path)
    assert written["problems"] == ["log \udcff.txt"]


def test_missing_directories_are_made_and_nothing_else_is_left(tmp_path):
    write_json(RUN, tmp_path / "a" / "b" / "report.json")
    write_json(RUN, tmp_path / "a" / "b" / "report.json")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_leaves_the_earlier_one_and_no_fragment(tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    write_json(RUN, target)
    earlier = target.read_bytes()

    def no_space(_self, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_json(replace(RUN, exit_code=0), target)
    assert target.read_bytes() == earlier
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_no_line_of_an_engines_reason_is_a_command_for_github() -> None:
    broken = replace(RUN.engines[0], state="failed", reason="gone\n::add-mask::x\n" + "word " * 30 + "::error::y")
    for width in range(40, 100):
        lines = terminal_table(replace(RUN, engines=(broken,)), width=width)
        assert not [line for line in lines if line.lstrip().startswith("::")]
        assert max(map(len, lines)) <= width
