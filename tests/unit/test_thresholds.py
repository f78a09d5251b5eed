import itertools
import math
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import limit, measured

from pytest_vllmperf.domain.thresholds import (
    Limit,
    LimitTable,
    Match,
    Outcome,
    Subject,
    Thresholds,
    applicable,
    covers,
    judge,
    resolve,
)
from pytest_vllmperf.errors import LimitTie, UnknownMetric

SUBJECT = Subject(hardware="NVIDIA H200", model="Qwen/Qwen2.5-7B-Instruct-AWQ", engine="max-perf", workload="burst")
KEYS = ("hardware", "model", "engine", "workload")


def table(number: int, match: Match, *limits: Limit) -> LimitTable:
    return LimitTable(
        match=match, limits={one.metric: one for one in limits}, where=f"thresholds.toml: limit[{number}]"
    )


def file(*tables: LimitTable) -> Thresholds:
    return Thresholds(tables=tables, quality_tasks={})


def one(text: str) -> Limit:
    return limit("ttft_mean", maximum=0.6, text=text)


def test_no_table_gives_no_limit() -> None:
    assert resolve(file(), SUBJECT, "ttft_mean") is None


def test_an_absent_key_matches_anything() -> None:
    assert resolve(file(table(1, Match(), one("a"))), SUBJECT, "ttft_mean") == one("a")


def test_a_table_for_something_else_is_not_used() -> None:
    for other in (Match(engine="baseline"), Match(hardware="NVIDIA H10*"), Match(model="qwen/*"), Match(engine="max")):
        assert resolve(file(table(1, other, one("a"))), SUBJECT, "ttft_mean") is None


def test_more_exact_keys_beat_any_number_of_globs() -> None:
    globs = Match(hardware="NVIDIA*", model="Qwen*", engine="max*", workload="b*")
    thresholds = file(table(1, globs, one("globs")), table(2, Match(engine="max-perf"), one("exact")))
    assert resolve(thresholds, SUBJECT, "ttft_mean") == one("exact")


def test_of_equally_many_exact_keys_more_globs_win() -> None:
    thresholds = file(
        table(1, Match(engine="max-perf", model="Qwen*"), one("with a glob")),
        table(2, Match(workload="burst"), one("without")),
    )
    assert resolve(thresholds, SUBJECT, "ttft_mean") == one("with a glob")


def test_a_tie_names_both_tables_and_what_it_is_about() -> None:
    thresholds = file(
        table(1, Match(engine="max-perf"), one("≤ 600 ms")),
        table(2, Match(workload="burst"), one("≤ 300 ms")),
    )
    with pytest.raises(LimitTie) as caught:
        resolve(thresholds, SUBJECT, "ttft_mean")
    for part in ("ttft_mean", "limit[1] (≤ 600 ms)", "limit[2] (≤ 300 ms)", "'max-perf'", "'burst'", "another key"):
        assert part in str(caught.value)


def test_a_tie_below_the_winner_is_no_tie() -> None:
    thresholds = file(
        table(1, Match(engine="max-perf"), one("a")),
        table(2, Match(workload="burst"), one("b")),
        table(3, Match(engine="max-perf", workload="burst"), one("winner")),
    )
    assert resolve(thresholds, SUBJECT, "ttft_mean") == one("winner")


def test_tables_without_this_metric_do_not_take_part() -> None:
    thresholds = file(
        table(1, Match(), one("general")),
        table(2, Match(engine="max-perf", workload="burst"), limit("tpot_mean", maximum=0.1)),
    )
    assert resolve(thresholds, SUBJECT, "ttft_mean") == one("general")


def test_a_tolerance_alone_sets_no_limit_and_hides_none() -> None:
    thresholds = file(
        table(1, Match(), one("general")),
        table(2, Match(engine="max-perf"), limit("ttft_mean", tolerance=0.05)),
    )
    assert resolve(thresholds, SUBJECT, "ttft_mean") == one("general")


def test_a_name_with_brackets_matches_itself_exactly() -> None:
    subject = Subject(hardware="GPU [rev 1]", model="m", engine="e", workload="w")
    assert Match(hardware="GPU [rev 1]").specificity(subject) == (1, 0)
    assert Match(hardware="GPU [[]rev 1]").specificity(subject) == (0, 1)


def test_globs_mind_upper_and_lower_case() -> None:
    assert Match(hardware="nvidia*").specificity(SUBJECT) is None


PATTERNS = st.sampled_from([None, "a", "b", "*", "a*", "[ab]"])
MATCHES = st.builds(Match, hardware=PATTERNS, model=PATTERNS, engine=PATTERNS, workload=PATTERNS)
NAMES = st.sampled_from(["a", "b", "ab"])
SUBJECTS = st.builds(Subject, hardware=NAMES, model=NAMES, engine=NAMES, workload=NAMES)


def by_brute_force(matches: list[Match], subject: Subject) -> list[int]:
    """Indices of the best matching tables, by the words of the design."""
    pairs = [[(getattr(m, k), getattr(subject, k)) for k in KEYS if getattr(m, k) is not None] for m in matches]
    fitting = [i for i, p in enumerate(pairs) if all(fnmatchcase(actual, given) for given, actual in p)]
    exact = {i: sum(given == actual for given, actual in pairs[i]) for i in fitting}
    most_exact = [i for i in fitting if exact[i] == max(exact.values())]
    globs = {i: len(pairs[i]) - exact[i] for i in most_exact}
    return [i for i in most_exact if globs[i] == max(globs.values())]


@given(st.lists(MATCHES, max_size=5), SUBJECTS)
def test_resolution_does_what_the_design_says(matches: list[Match], subject: Subject) -> None:
    thresholds = file(*(table(i, m, one(f"limit {i}")) for i, m in enumerate(matches)))
    best = by_brute_force(matches, subject)
    if len(best) > 1:
        with pytest.raises(LimitTie):
            resolve(thresholds, subject, "ttft_mean")
    else:
        expected = one(f"limit {best[0]}") if best else None
        assert resolve(thresholds, subject, "ttft_mean") == expected


@given(st.lists(MATCHES, max_size=4), SUBJECTS)
def test_the_order_of_tables_never_decides(matches: list[Match], subject: Subject) -> None:
    tables = [table(i, m, one(f"limit {i}")) for i, m in enumerate(matches)]
    assert len({resolved(file(*order), subject) for order in itertools.permutations(tables)}) == 1


def resolved(thresholds: Thresholds, subject: Subject) -> Limit | str | None:
    try:
        return resolve(thresholds, subject, "ttft_mean")
    except LimitTie:
        return "tie"


MODELS = {"baseline": "tinymath", "max-perf": "tinymath"}


def test_applicable_limits_are_those_of_this_hardware_and_these_engines() -> None:
    here = table(1, Match(hardware="CPU *", model="tinymath", workload="burst"), one("here"))
    thresholds = file(
        here,
        table(2, Match(hardware="NVIDIA H200"), one("elsewhere")),
        table(3, Match(engine="other"), one("another engine")),
        table(4, Match(model="Qwen*"), one("another model")),
        table(5, Match(), limit("ttft_mean", tolerance=0.1)),
    )
    assert applicable(thresholds, hardware="CPU x86_64", models=MODELS) == ((here, here.limits["ttft_mean"]),)


def test_engine_and_model_must_belong_together_to_be_applicable() -> None:
    thresholds = file(table(1, Match(engine="a", model="m2"), one("never")))
    assert applicable(thresholds, hardware="h", models={"a": "m1", "b": "m2"}) == ()


def test_a_verdict_covers_the_limits_that_match_its_subject() -> None:
    verdict = judge(measured("ttft_mean", 0.1), "ttft_mean", None)  # engine baseline, workload burst

    def covered(match: Match, metric: str = "ttft_mean") -> bool:
        bound = limit(metric, maximum=1.0)
        return covers(table(1, match, bound), bound, verdict, hardware="CPU", models=MODELS)

    assert covered(Match())
    assert covered(Match(hardware="CPU", model="tiny*", engine="baseline", workload="burst"))
    assert not covered(Match(workload="heavy"))
    assert not covered(Match(engine="max-perf"))
    assert not covered(Match(), metric="tpot_mean")


def test_within_its_limit_a_value_passes() -> None:
    verdict = judge(measured("ttft_mean", 0.25), "ttft_mean", limit("ttft_mean", maximum=0.3, text="≤ 300 ms"))
    assert (verdict.outcome, verdict.reason) == (Outcome.PASS, "TTFT mean 250 ms meets ≤ 300 ms")
    assert (verdict.engine, verdict.workload, verdict.value, verdict.n) == ("baseline", "burst", 0.25, 1)


@pytest.mark.parametrize(
    ("metric", "value", "bound", "reason"),
    [
        ("ttft_mean", 0.412, {"maximum": 0.3, "text": "≤ 300 ms"}, "TTFT mean 412 ms exceeds ≤ 300 ms by 37 %"),
        (
            "output_throughput",
            4811.0,
            {"minimum": 6000.0, "text": "≥ 6000 tok/s"},
            "output throughput 4 811 tok/s falls below ≥ 6000 tok/s by 20 %",
        ),
        ("ttft_mean", 0.3001, {"maximum": 0.3, "text": "≤ 300 ms"}, "TTFT mean 300.1 ms exceeds ≤ 300 ms by 0.033 %"),
        ("error_rate", 0.02, {"maximum": 0.0, "text": "≤ 0 %"}, "error rate 2 % exceeds ≤ 0 %"),
        ("accuracy", 0.0, {"minimum": 0.8, "text": "≥ 80 %"}, "accuracy 0 % falls below ≥ 80 % by 100 %"),
    ],
)
def test_a_missed_limit_says_value_limit_and_by_how_much(
    metric: str, value: float, bound: dict[str, float], reason: str
) -> None:
    verdict = judge(measured(metric, value), metric, limit(metric, **bound))  # type: ignore[arg-type]
    assert (verdict.outcome, verdict.reason) == (Outcome.FAIL, reason)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_pass_and_fail_follow_the_numbers(value: float, first: float, second: float) -> None:
    low, high = sorted((first, second))
    bound = limit("kv_cache_usage_peak", minimum=low, maximum=high)
    verdict = judge(measured("kv_cache_usage_peak", value), "kv_cache_usage_peak", bound)
    assert verdict.outcome is (Outcome.PASS if low <= value <= high else Outcome.FAIL)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bound", [{"maximum": 1e12}, {"minimum": 0.0}])
def test_a_missing_value_never_passes(value: float | None, bound: dict[str, float]) -> None:
    summary = measured("goodput", value, n=0, missing="the workload states no service level")
    verdict = judge(summary, "goodput", limit("goodput", **bound))  # type: ignore[arg-type]
    assert verdict.outcome is Outcome.INVALID
    assert verdict.value is None
    assert verdict.reason == "goodput was not measured: the workload states no service level"


def test_a_metric_the_measurement_does_not_have_is_invalid_against_a_limit() -> None:
    verdict = judge(measured("ttft_mean", 0.1), "accuracy", limit("accuracy", minimum=0.8))
    assert (verdict.outcome, verdict.n) == (Outcome.INVALID, 0)
    assert "accuracy was not measured: this measurement does not include it" in verdict.reason


def test_without_a_limit_nothing_is_judged() -> None:
    verdict = judge(measured("ttft_mean", 0.1), "ttft_mean", None)
    assert (verdict.outcome, verdict.reason, verdict.limit) == (Outcome.NOT_JUDGED, "no limit matches", None)


@pytest.mark.parametrize("bound", [None, limit("ttft_mean", maximum=1.0)])
def test_a_broken_measurement_is_invalid_whatever_it_shows(bound: Limit | None) -> None:
    verdict = judge(measured("ttft_mean", 0.1, invalid=("first", "second", "third")), "ttft_mean", bound)
    assert (verdict.outcome, verdict.reason) == (Outcome.INVALID, "first (and 2 more)")
    assert judge(measured("ttft_mean", 0.1, invalid=("only",)), "ttft_mean", bound).reason == "only"


@pytest.mark.parametrize(("statistic", "needed"), [("p90", 30), ("p95", 60), ("p99", 459)])
def test_too_few_samples_for_a_percentile_are_shown_and_not_judged(statistic: str, needed: int) -> None:
    metric = f"ttft_{statistic}"
    short = judge(measured(metric, 9.0, n=needed - 1), metric, limit(metric, maximum=1.0))
    assert short.outcome is Outcome.NOT_JUDGED
    assert short.reason == f"TTFT {statistic} not judged, n = {needed - 1} ({statistic} needs {needed})"
    enough = judge(measured(metric, 9.0, n=needed), metric, limit(metric, maximum=1.0))
    assert enough.outcome is Outcome.FAIL


def test_too_few_samples_for_a_required_limit_are_inconclusive_and_count_as_failure() -> None:
    verdict = judge(measured("ttft_p95", 0.1, n=20), "ttft_p95", limit("ttft_p95", maximum=1.0, required=True))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "n = 20 (p95 needs 60)" in verdict.reason
    assert verdict.counts_as_failure(inconclusive_fails=False)


def test_only_fail_and_invalid_and_wanted_inconclusive_count_as_failures() -> None:
    failing = {
        outcome
        for outcome, summary, bound in (
            (Outcome.PASS, measured("ttft_mean", 0.1), limit("ttft_mean", maximum=1.0)),
            (Outcome.FAIL, measured("ttft_mean", 2.0), limit("ttft_mean", maximum=1.0)),
            (Outcome.INVALID, measured("ttft_mean", None), limit("ttft_mean", maximum=1.0)),
            (Outcome.NOT_JUDGED, measured("ttft_mean", 2.0), None),
        )
        if judge(summary, "ttft_mean", bound).counts_as_failure(inconclusive_fails=True)
    }
    assert failing == {Outcome.FAIL, Outcome.INVALID}


def test_a_bare_distribution_or_an_unknown_metric_cannot_be_judged() -> None:
    with pytest.raises(UnknownMetric, match="ttft_mean"):
        judge(measured("ttft", 0.1), "ttft", None)
    with pytest.raises(UnknownMetric, match="did you mean"):
        judge(measured("ttft_mean", 0.1), "ttft_maen", None)
