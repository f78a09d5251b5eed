"""The table and the sentence people read, secrets that never reach them, and JSON-safe builtins."""

import json
import math
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.environment import Environment
from pytest_vllmperf.domain.report import EngineReport, Report, headline, plain, rows
from pytest_vllmperf.domain.summary import Summary, metric_values
from pytest_vllmperf.domain.thresholds import Limit, Outcome, Verdict
from pytest_vllmperf.errors import UnknownMetric

HERE = Environment(
    hardware="CPU Example",
    device="cpu",
    gpus=(),
    driver=None,
    cpu="Example",
    cores=2,
    memory_bytes=8 * 2**30,
    platform="Linux",
    python="3.11",
    packages={},
    commit=None,
    dirty=None,
    warnings=(),
)


def engine(name="baseline", state="measured", **changes):
    given = {"reason": None, "command": (), "env": {}, "version": None, "log_path": None, "launches": 1, **changes}
    return EngineReport(name=name, model="tinymath", state=state, **given)


def verdict(metric="ttft_mean", outcome=Outcome.PASS, *, value=0.5, n=60, limit="≤ 600 ms", **changes):
    known = limit and Limit(
        metric=metric, maximum=0.6, minimum=None, tolerance=None, required=False, where="t.toml: limit[1]", text=limit
    )
    given = {"engine": "baseline", "workload": "burst", "reason": "a reason", **changes}
    return Verdict(metric=metric, outcome=outcome, value=value, n=n, limit=known or None, **given)


def summary(workload="burst", invalid=(), **metrics):
    distributions = {name: value for name, value in metrics.items() if isinstance(value, list)}
    scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
    return Summary(
        engine="baseline",
        workload=workload,
        kind="load",
        model="tinymath",
        description="",
        requests=2,
        completed=2,
        failures={},
        duration_s=1.0,
        metrics=metric_values(distributions=distributions, scalars=scalars),
        invalid=invalid,
        warnings=(),
        facts={},
    )


def report(*verdicts, summaries=(), engines=(), problems=()):
    return Report(
        started_at="2026-01-02T03:04:05+00:00",
        duration_s=12.0,
        environment=HERE,
        engines=engines,
        summaries=summaries,
        verdicts=verdicts,
        problems=problems,
        exit_code=0,
    )


def test_a_judged_row_shows_value_samples_limit_and_outcome():
    (row,) = rows(report(verdict(outcome=Outcome.FAIL, value=0.7)))
    assert (row.metric, row.value, row.n, row.limit, row.verdict) == ("ttft_mean", "700 ms", "60", "≤ 600 ms", "FAIL")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (verdict(outcome=Outcome.NOT_JUDGED, limit=None), "shown: no limit"),
        (verdict("ttft_p95", Outcome.NOT_JUDGED, n=20), "shown: needs n ≥ 60"),
        (verdict("ttft_p99", Outcome.NOT_JUDGED, n=60), "shown: needs n ≥ 459"),
        (verdict(outcome=Outcome.NOT_JUDGED), "shown"),
        (verdict(outcome=Outcome.NOT_JUDGED, limit=None, value=None, n=0), "not measured"),
    ],
)
def test_a_row_that_was_not_judged_says_why(given, said):
    (row,) = rows(report(given))
    assert row.verdict == said


def test_a_missing_value_is_shown_as_a_dash_and_never_as_zero():
    (row,) = rows(report(verdict(outcome=Outcome.INVALID, value=None, n=0)))
    assert row.value == "–"


@given(st.lists(st.sampled_from(list(Outcome)), min_size=1, max_size=6))
def test_a_metric_judged_again_keeps_its_worst_outcome(outcomes):
    (row,) = rows(report(*[verdict(outcome=o, limit=None) for o in outcomes]))
    worst_first = ["FAIL", "INVALID", "INCONCLUSIVE", "PASS", "shown: no limit"]
    shown = {"NOT JUDGED": "shown: no limit"}
    said = [shown.get(str(o), str(o)) for o in outcomes]
    assert row.verdict == min(said, key=worst_first.index)


def test_rows_stand_together_by_subject_with_the_judged_before_the_shown():
    table = rows(
        report(
            verdict("ttft_p99", Outcome.NOT_JUDGED, n=5),
            verdict("tpot_mean", workload="heavy"),
            verdict("ttft_mean"),
        )
    )
    assert [(r.workload, r.metric) for r in table] == [
        ("burst", "ttft_mean"),
        ("burst", "ttft_p99"),
        ("heavy", "tpot_mean"),
    ]


def test_a_measurement_nobody_judged_shows_scalars_and_means():
    table = rows(report(summaries=(summary(ttft=[0.1, 0.3], output_throughput=50.0, goodput=None),)))
    assert [(r.metric, r.value, r.n, r.verdict) for r in table] == [
        ("ttft_mean", "200 ms", "2", "shown"),
        ("output_throughput", "50 tok/s", "1", "shown"),
    ]


def test_a_broken_measurement_nobody_judged_is_invalid_not_shown():
    (row,) = rows(report(summaries=(summary(invalid=("0 of 2 requests completed",), error_rate=1.0),)))
    assert row.verdict == "INVALID"


def test_a_judged_measurement_is_not_listed_a_second_time():
    table = rows(report(verdict(), summaries=(summary(ttft=[0.5], output_throughput=50.0),)))
    assert [r.metric for r in table] == ["ttft_mean"]


def test_a_metric_outside_the_catalogue_is_named():
    with pytest.raises(UnknownMetric, match="metric 'warp_mean' is unknown"):
        rows(report(verdict("warp_mean")))


@pytest.mark.parametrize(
    ("verdicts", "engines", "problems", "sentence"),
    [
        ([verdict()], [engine()], [], "Every limit held (1 PASS of 1 limit judged)"),
        (
            [verdict(), verdict("tpot_mean", Outcome.NOT_JUDGED, limit=None)],
            [engine()],
            [],
            "Every limit held (1 PASS of 1 limit judged, 1 only shown)",
        ),
        (
            [verdict(), verdict("tpot_mean", Outcome.FAIL), verdict("e2el_mean", Outcome.INCONCLUSIVE)],
            [engine(), engine("max-perf", "failed", reason="OOM")],
            [],
            "Engine max-perf failed; 1 FAIL; 1 INCONCLUSIVE (1 PASS of 3 limits judged)",
        ),
        ([], [engine(state="skipped", reason="no GPU")], ["x"], "Nothing was judged; 1 problem (skipped: baseline)"),
        ([verdict()], [engine()], ["x", "y"], "Every limit held; 2 problems (1 PASS of 1 limit judged)"),
        ([], [], [], "Nothing was judged"),
    ],
)
def test_the_headline_says_what_is_wrong_first_and_how_much_was_judged(verdicts, engines, problems, sentence):
    assert headline(verdicts, engines, problems) == sentence


def test_a_built_in_limit_that_held_does_not_make_a_run_judged():
    assert headline([verdict("error_rate", built_in=True)], [engine()], []) == "Nothing was judged"


def test_a_built_in_limit_that_was_missed_is_counted():
    said = headline([verdict("error_rate", Outcome.FAIL, built_in=True)], [engine()], [])
    assert said == "1 FAIL; nothing was judged"


def test_a_broken_measurement_without_a_limit_is_not_counted_as_a_limit_judged():
    invalid = verdict("tpot_mean", Outcome.INVALID, value=None, n=0, limit=None)
    assert headline([verdict(), invalid], [engine()], []) == "1 INVALID (1 PASS of 1 limit judged)"


def test_an_engine_report_holds_no_secret_wherever_it_was_given():
    told = engine(
        state="failed",
        command=("serve", "--api-key", "sk-123456", "--hf-token=hf_abcdef", "--tokenizer", "plain"),
        env={"HF_TOKEN": "hf_abcdef", "HTTP_PROXY": "http://user:pass@proxy:1", "VLLM_USE_V1": "1", "A_KEY": "x"},
        reason="401 for hf_abcdef with sk-123456",
    )
    assert told.command == ("serve", "--api-key", "[redacted]", "--hf-token=[redacted]", "--tokenizer", "plain")
    assert told.env == {
        "HF_TOKEN": "[redacted]",
        "HTTP_PROXY": "http://[redacted]@proxy:1",
        "VLLM_USE_V1": "1",
        "A_KEY": "[redacted]",
    }
    assert told.reason == "401 for [redacted] with [redacted]"


def test_ordinary_flags_that_sound_like_secrets_are_kept():
    command = ("serve", "--max-num-batched-tokens", "2048", "--tokenizer-mode", "auto", "--key-cache", "fp8")
    assert engine(command=command).command == command


def test_plain_makes_builtins_of_everything_a_report_may_hold():
    @dataclass(frozen=True, slots=True)
    class Odd:
        outcome: Outcome = Outcome.PASS
        samples: tuple = (np.float64(0.5), np.int64(3), math.nan, -math.inf)
        mapping: MappingProxyType = field(default_factory=lambda: MappingProxyType({1: np.bool_(True)}))
        path: PurePosixPath = field(default_factory=lambda: PurePosixPath("/x/y"))
        nothing: None = None

    assert plain(Odd()) == {
        "outcome": "PASS",
        "samples": [0.5, 3, None, None],
        "mapping": {"1": True},
        "path": "/x/y",
        "nothing": None,
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(values)
def test_plain_values_survive_strict_json(value):
    safe = plain(value)
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe
