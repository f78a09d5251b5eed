"""The table of uses and the fronts, from summaries; the file's rules before the built-in ones."""

from dataclasses import replace

from test_quality_verdicts import summary

from pytest_vllmperf.domain.choice import Requirement, Rule
from pytest_vllmperf.domain.choice_section import choice_sections
from pytest_vllmperf.domain.summary import metric_values

GIB = 2.0**30
FITS = Rule(
    use="fits in 8 GiB",
    workload="heavy",
    best="output_throughput",
    requires=(Requirement(metric="device_memory_peak", maximum=8 * GIB, text="≤ 8 GiB"),),
)


def loaded(engine, workload="heavy", *, throughput=100.0, ttft=0.1, memory=4 * GIB, invalid=()):
    scalars = {"output_throughput": throughput, "device_memory_peak": memory, "host_memory_peak": 2 * GIB}
    metrics = metric_values(distributions={"ttft": [ttft], "tpot": [0.01]}, scalars=scalars)
    return replace(
        summary(1, 1), engine=engine, workload=workload, kind="load", metrics=metrics, facts={}, invalid=invalid
    )


def cells(table):
    return [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]


FULL = [loaded("large", throughput=200.0, memory=10 * GIB), loaded("small"), loaded("poor", throughput=50.0, ttft=0.5)]
NAMES = ("large", "small", "poor")


def test_a_rule_of_the_file_is_answered_with_who_is_left_out_and_why():
    (section,) = choice_sections(NAMES, FULL, (FITS,))
    assert section.sentences == ("fits in 8 GiB: small (output throughput 100 tok/s)",)
    (row,) = cells(section.tables[0])
    assert row[:3] == ["fits in 8 GiB", "small", "100 tok/s"]
    assert row[5] == "device memory peak ≤ 8 GiB"
    assert row[6] == "large: device memory peak 10 GiB misses ≤ 8 GiB"


def test_without_rules_the_built_in_ones_that_were_measured_are_answered():
    (section,) = choice_sections(NAMES, FULL, ())
    assert [sentence.partition(":")[0] for sentence in section.sentences] == ["many users"]


def test_the_front_is_over_throughput_ttft_memory_and_accuracy():
    (section,) = choice_sections(NAMES, FULL, ())
    front = section.tables[1]
    assert front.title == "Pareto front: heavy"
    assert front.head == ("engine", "output throughput", "TTFT mean", "device memory peak", "")
    assert [(row[0], row[-1]) for row in cells(front)] == [
        ("large", "on the front"),
        ("small", "on the front"),
        ("poor", "beaten"),
    ]
    answers = [
        replace(summary(n, 1), engine=name, workload="gsm8k") for name, n in zip(NAMES, (90, 150, 160), strict=True)
    ]
    (section,) = choice_sections(NAMES, [*FULL, *answers], ())
    assert section.tables[1].head[4] == "accuracy of gsm8k"
    assert [row[-1] for row in cells(section.tables[1])] == ["on the front"] * 3, "it answers best"


def test_an_invalid_measurement_chooses_nobody():
    (section,) = choice_sections(NAMES, [loaded("large", throughput=900.0, invalid=("broken",)), *FULL[1:]], (FITS,))
    assert "large" not in section.sentences[0]
    assert "large" not in [row[0] for row in cells(section.tables[1])]


def test_one_engine_alone_leaves_nothing_to_choose():
    assert choice_sections(("large",), FULL, (FITS,)) == ()
