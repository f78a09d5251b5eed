"""The options of the command line, as ``pytest --help`` shows them."""

from __future__ import annotations

import pytest

__all__ = ["add_options"]


def add_options(parser: pytest.Parser) -> None:
    """Declare options; all of them are inert where no engines are declared."""
    group = parser.getgroup("vllmperf", "vLLM performance, memory and quality gates")
    group.addoption(
        "--vllmperf-engine",
        action="append",
        default=[],
        metavar="NAME",
        help="Measure only this engine of the matrix (repeatable).",
    )
    group.addoption(
        "--vllmperf-workload",
        action="append",
        default=[],
        metavar="NAME",
        help="Measure only this workload, quality task or 'startup'; tests of others are skipped (repeatable).",
    )
    group.addoption(
        "--vllmperf-quick",
        action="store_true",
        help="Send a fifth of each workload's requests (one for each slot at least). Such results are marked, and are "
        "never a baseline.",
    )
    group.addoption(
        "--vllmperf-quality",
        choices=("quick", "standard", "full"),
        help="Questions of each quality task: 30, 200 or all, drawn at random by the task's seed; data sets that hold "
        "fewer are asked whole. Default: as many as each task says (200 for the built-in ones).",
    )
    group.addoption(
        "--vllmperf-data",
        metavar="DIR",
        help="Take the questions of lm-eval's tasks from here instead of from the hub: DIR/gsm8k/test.jsonl and "
        "train.jsonl, DIR/ifeval/input_data.jsonl, … in the format they are published in.",
    )
    group.addoption(
        "--vllmperf-thresholds",
        metavar="FILE",
        help="Limits to judge by. Default: ini vllmperf_thresholds, else thresholds.toml in the root directory.",
    )
    group.addoption(
        "--vllmperf-record-only",
        action="store_true",
        help="Measure and store without needing limits: exit 0 although nothing was judged (else exit code 12).",
    )
    group.addoption(
        "--vllmperf-require-gpu",
        action="store_true",
        default=None,
        help="Fail, instead of skip, what needs a GPU and finds none. On by itself when CI is set and an engine "
        "that requires a GPU is named by --vllmperf-engine.",
    )
    group.addoption(
        "--vllmperf-share-cpu",
        action="store_true",
        help="Let engines without a GPU run beside those of other processes and workers on this machine. They disturb "
        "each other: by default an engine waits until it is alone.",
    )
    group.addoption(
        "--vllmperf-reuse",
        action="store_true",
        help="Leave engines running at the end, and use those an earlier run left where nothing about them changed: "
        "for editing and running again. Such results are marked, and are never a baseline. See 'vllmperf ps' and "
        "'vllmperf stop'; an engine unused for an hour ends by itself.",
    )
    group.addoption(
        "--vllmperf-resume",
        action="store_true",
        help="Go on with the run in the report directory that was killed or interrupted: what its tests found is taken "
        "over, the others run, and engines that have none left are not launched. Not with -n.",
    )
    group.addoption(
        "--vllmperf-report-dir",
        metavar="DIR",
        help="Where reports and engine logs go. Default: ini vllmperf_report_dir, else reports/latest.",
    )
    _add_judging_options(parser)
    _add_report_options(parser)
    parser.addini("vllmperf_thresholds", "Thresholds file, relative to the root directory.", default="thresholds.toml")
    parser.addini("vllmperf_report_dir", "Report directory, relative to the root directory.", default="reports/latest")


def _add_report_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("vllmperf")
    group.addoption(
        "--vllmperf-report",
        metavar="FORMATS",
        help="What to write, separated by commas: html (index.html), md (report.md), json (report.json), "
        "prom (metrics.prom, for Prometheus), csv (requests/: every request of every load). "
        "Default: ini vllmperf_report, else html,md,json.",
    )
    group.addoption(
        "--vllmperf-push",
        metavar="URL",
        help="Push the final metrics to this Prometheus push gateway, under job vllmperf.",
    )
    parser.addini("vllmperf_report", "Report formats, as for --vllmperf-report.", default="html,md,json")


def _add_judging_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("vllmperf-judging", "vLLM performance gates: comparisons, repetition, doubt")
    group.addoption(
        "--vllmperf-compare",
        action="append",
        default=[],
        metavar="BASE:CANDIDATE",
        help="Launch two engines of the matrix alternately and judge the second against the first; runs the tests "
        "that use vllm_compare (repeatable).",
    )
    group.addoption(
        "--vllmperf-attribute",
        action="append",
        default=[],
        metavar="BASE:CANDIDATE",
        help="Find out which of the settings in which two engines of the matrix differ does what to each metric; runs "
        "the tests that use vllm_attribute (repeatable). It judges nothing: exit code 0 without any limit.",
    )
    group.addoption(
        "--vllmperf-budget",
        metavar="DURATION",
        help='Time an attribution, or the search for a capacity, may take, such as "45 min": it makes fewer launches, '
        "or loads, to keep to it. Default: as long as its plan needs.",
    )
    group.addoption(
        "--vllmperf-pairs",
        type=int,
        default=None,
        metavar="N",
        help="Launches of each compared engine at most (default: 10; looks after 4, 6, 8 and 10 pairs).",
    )
    group.addoption(
        "--vllmperf-confirm",
        action="store_true",
        help="Repeat each FAIL of a comparison once with fresh launches, and answer a suspicion against history with a "
        "comparison.",
    )
    group.addoption(
        "--vllmperf-launches",
        type=int,
        default=None,
        metavar="N",
        help="Launch each engine up to N times for limits on levels, with an interval over launches (looks after 3, 5 "
        "and 8). Default: launches in thresholds.toml, else 1.",
    )
    group.addoption(
        "--vllmperf-rounds",
        type=int,
        default=None,
        metavar="N",
        help="Measure each workload N times in one launch, with other prompts. Default: rounds in thresholds.toml, "
        "else 3 on a GPU; without one a closed loop is measured once.",
    )
    group.addoption(
        "--vllmperf-inconclusive",
        choices=("warn", "fail"),
        default=None,
        help="Whether too little evidence fails a test. Default: inconclusive in thresholds.toml, else warn.",
    )
    group.addoption(
        "--vllmperf-calibrate",
        action="store_true",
        help="Propose limits for this hardware from several launches of each engine (5 unless --vllmperf-launches says "
        "otherwise) and write them into thresholds.toml, showing the difference. Judges nothing; limits that are there "
        "are tightened, never loosened.",
    )
    group.addoption(
        "--vllmperf-force",
        action="store_true",
        help="Let --vllmperf-calibrate loosen limits as well.",
    )
