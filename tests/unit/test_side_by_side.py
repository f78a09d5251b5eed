import math

import pytest
from scipy.stats import ttest_ind
from summaries import load_summary

from pytest_vllmperf.domain.replicates import pooled
from pytest_vllmperf.domain.side_by_side_section import differences, side_by_side_sections
from pytest_vllmperf.domain.summary import Summary


def load(engine: str, throughput: float, *, ttft: float = 0.2, workload: str = "heavy", **changes: object) -> Summary:
    distributions, scalars = {"ttft": [ttft]}, {"output_throughput": throughput}
    return load_summary(distributions=distributions, scalars=scalars, engine=engine, workload=workload, **changes)


def rounds(engine: str, *throughputs: float) -> Summary:
    return pooled([load(engine, value) for value in throughputs], kind="round")


def test_rounds_of_both_give_welchs_interval_of_the_ratio() -> None:
    before, after = (100.0, 101.0, 99.5), (70.0, 71.5, 70.2)
    (throughput, ttft) = differences(rounds("a", *before), rounds("b", *after))
    logs = ([math.log(v) for v in after], [math.log(v) for v in before])
    interval = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert throughput.low == pytest.approx(math.expm1(interval.low))
    assert throughput.high == pytest.approx(math.expm1(interval.high))
    assert (throughput.reading, throughput.shown) == ("worse", "-30 % [-31 %, -28 %]")
    assert (ttft.metric, ttft.change, ttft.reading) == ("ttft_mean", 0.0, "same")


@pytest.mark.parametrize(
    ("before", "after", "reading"),
    [
        ((100.0,), (70.0,), "worse"),
        ((100.0,), (130.0,), "better"),
        ((100.0,), (96.0,), "same"),
        ((100.0, 60.0, 140.0), (70.0, 130.0, 50.0), "unclear"),
    ],
)
def test_the_reading_follows_the_metrics_direction_and_the_interval(before, after, reading) -> None:
    assert differences(rounds("a", *before), rounds("b", *after))[0].reading == reading


def test_one_round_has_no_interval() -> None:
    assert differences(load("a", 100.0), load("b", 70.0))[0].shown == "-30 %"


def test_a_broken_measurement_is_beside_nothing() -> None:
    assert differences(load("a", 100.0), load("b", 70.0, invalid=("usage is missing",))) == []
    assert side_by_side_sections(["a", "b"], [load("a", 1.0, invalid=("x",)), load("b", 2.0)]) == ()


def test_the_sentence_has_what_changed_by_workload_and_says_that_it_is_no_verdict() -> None:
    summaries = [
        load("a", 100.0, ttft=0.1),
        load("a", 50.0, workload="burst"),
        load("b", 71.0, ttft=0.233),
        load("b", 50.5, workload="burst"),
    ]
    (section,) = side_by_side_sections(["a", "b"], summaries)
    assert section.title == "b beside a"
    assert section.sentences == (
        "output throughput -29 %, TTFT mean +133 % at heavy (one launch of each, unpaired: not a verdict)",
    )
    assert [row[:2] for row in section.tables[0].rows] == [
        ("heavy", "output_throughput"),
        ("heavy", "ttft_mean"),
        ("burst", "output_throughput"),
        ("burst", "ttft_mean"),
    ]
    assert "--vllmperf-compare=a:b" in section.notes[0]


def test_every_other_engine_stands_beside_the_first_of_the_matrix_unless_the_two_were_compared() -> None:
    summaries = [load("b", 1.0), load("a", 1.0), load("c", 1.0), load("d", 1.0, experiment="a:d")]
    found = side_by_side_sections(["a", "b", "c", "d"], summaries, [("a", "c")])
    assert [section.id for section in found] == ["beside-a-b"]
    assert found[0].sentences[0].startswith("no clear change beyond the tolerances (one launch")


def test_launches_are_counted_where_there_are_several() -> None:
    pair = [pooled([load(name, v) for v in (1.0, 1.1, 0.9)], kind="launch") for name in ("a", "b")]
    (section,) = side_by_side_sections(["a", "b"], pair)
    assert "3 launches of each" in section.sentences[0]
