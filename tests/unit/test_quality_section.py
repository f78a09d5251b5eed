from dataclasses import replace

from test_quality_verdicts import summary

from pytest_vllmperf.domain.quality_section import quality_sections
from pytest_vllmperf.domain.summary import metric_values
from pytest_vllmperf.domain.thresholds import Outcome, Verdict


def evaluated(engine, right, kl=None):
    change = [-1.0] * (180 - right) + [0.0] * (200 - (180 - right)) if kl is not None else ()
    found = summary(right, change=change, kl=kl)
    facts = {"reference": {"engine": "bf16", "lost": 180 - right, "gained": 0}} if kl is not None else {}
    return replace(found, engine=engine, facts=facts)


def loaded(engine, throughput, memory):
    scalars = {"output_throughput": throughput, "host_memory_peak": memory}
    metrics = metric_values(distributions={}, scalars=scalars)
    return replace(summary(1, 1), engine=engine, workload="burst", kind="load", metrics=metrics, facts={})


def verdict(engine, outcome):
    return Verdict(
        outcome=outcome, engine=engine, workload="gsm8k", metric="kl_mean", value=0.0, n=1, limit=None, reason=""
    )


SUMMARIES = [
    evaluated("bf16", 180),
    evaluated("awq", 178, kl=0.001),
    evaluated("int3", 150, kl=0.02),
    loaded("bf16", 100.0, 4e9),
    loaded("awq", 150.0, 2e9),
    loaded("int3", 160.0, 1e9),
]
VERDICTS = [verdict("bf16", Outcome.PASS), verdict("awq", Outcome.PASS), verdict("int3", Outcome.FAIL)]


def test_the_table_sets_quality_speed_and_memory_side_by_side():
    (section,) = quality_sections(SUMMARIES, VERDICTS)
    (table,) = section.tables
    assert table.head[:3] == ("engine", "accuracy", "accuracy change")
    rows = {row[0]: [getattr(cell, "text", cell) for cell in row] for row in table.rows}
    assert rows["awq"][2] == "-1.0 points (2 lost, 0 gained)"
    assert rows["bf16"][2] == "–"
    assert "150 tok/s" in rows["awq"]
    assert rows["int3"][-1] == "FAIL"
    assert section.kind == "fail"


def test_the_sentence_says_which_to_take_and_which_not():
    (section,) = quality_sections(SUMMARIES, VERDICTS)
    kept, failed = section.sentences
    assert kept == (
        "bf16 and awq keep the quality asked for; the highest throughput of these has awq (150 tok/s); "
        "the smallest host memory of these has awq (1.86 GiB)."
    )
    assert failed == "int3 does not."


def test_the_front_holds_what_nothing_beats_in_accuracy_and_throughput():
    (scatter,) = quality_sections(SUMMARIES, VERDICTS)[0].scatters
    assert {p.label: p.front for p in scatter.points} == {"bf16": True, "awq": True, "int3": True}
    slower = [*SUMMARIES[:4], loaded("awq", 90.0, 2e9), SUMMARIES[5]]
    (scatter,) = quality_sections(slower, VERDICTS)[0].scatters
    assert {p.label: p.front for p in scatter.points} == {"bf16": True, "awq": False, "int3": True}


def test_an_invalid_evaluation_is_no_answer_to_which_one():
    verdicts = [*VERDICTS[:2], verdict("int3", Outcome.INVALID)]
    assert quality_sections(SUMMARIES, verdicts)[0].sentences[-1] == (
        "Of int3 nothing can be said: the evaluation is INVALID."
    )


def test_engines_without_a_reference_make_no_section():
    assert quality_sections([evaluated("a", 180), evaluated("b", 180)], ()) == ()
