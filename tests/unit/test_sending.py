"""What tests send is sent once, and whole again as soon as something about it changes."""

from dataclasses import replace

from report_samples import ENVIRONMENT, engine

from pytest_vllmperf.domain.thresholds import Outcome, Verdict
from pytest_vllmperf.sending import Evidence, Sender

PASSED = Verdict(
    outcome=Outcome.PASS,
    engine="baseline",
    workload="burst",
    metric="ttft_mean",
    value=0.2,
    n=50,
    limit=None,
    reason="no limit",
)
FAILED = replace(PASSED, outcome=Outcome.FAIL)


def evidence(*verdicts, report=None):
    report = report or engine("baseline")
    return Evidence(verdicts=list(verdicts), engines={"baseline": report}, places={"baseline": ENVIRONMENT})


def test_what_was_sent_is_not_sent_again():
    sender = Sender()
    assert not sender.news(evidence(PASSED)).is_empty
    assert sender.news(evidence(PASSED)).is_empty


def test_an_engine_that_changed_is_sent_with_its_place_and_nothing_else():
    sender = Sender()
    sender.news(evidence(PASSED))
    again = replace(engine("baseline"), launches=2)
    news = sender.news(evidence(PASSED, report=again))
    assert news == Evidence(engines={"baseline": again}, places={"baseline": ENVIRONMENT})


def test_a_judgement_that_changed_is_sent_even_where_it_changes_back():
    sender = Sender()
    sent = [sender.news(evidence(verdict)).verdicts for verdict in (PASSED, FAILED, FAILED, PASSED)]
    assert sent == [[PASSED], [FAILED], [], [PASSED]]


def test_the_latest_of_several_judgements_of_one_value_is_the_one_sent():
    assert Sender().news(evidence(PASSED, FAILED)).verdicts == [FAILED]
