"""Searching a capacity: the search itself on a simulated server, then on a live reference server's real queue."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from reference import SERVER

from pytest_vllmperf import EngineConfig, ServiceLevel, Workload
from pytest_vllmperf.adapters.environment import gather_environment
from pytest_vllmperf.capacity import CapacityPlan, find_capacity
from pytest_vllmperf.domain.capacity_section import capacity_section, knee_of
from pytest_vllmperf.domain.gate import judge_all
from pytest_vllmperf.domain.records import ClientHealth, LoadRun, RequestOutcome, RequestRecord
from pytest_vllmperf.domain.self_check import BOTTLENECK
from pytest_vllmperf.domain.summary import summarize
from pytest_vllmperf.domain.thresholds import Limit, LimitTable, Match, Subject, Thresholds
from pytest_vllmperf.errors import ConfigError
from pytest_vllmperf.measurement import measure
from pytest_vllmperf.pool import EnginePool
from pytest_vllmperf.probing import capacity_summary

LEVEL = ServiceLevel(ttft_s=0.2)
CHAT = Workload(
    name="chat", input_tokens=8, output_tokens=4, requests=300, max_concurrency=16, service_level=LEVEL, seed=3
)
SERVICE_S, SLOTS = 0.1, 4


def record(index, intended_s, first_s, last_s, outcome=RequestOutcome.SUCCESS):
    ns = [round(t * 1e9) for t in (intended_s, first_s, last_s)]
    return RequestRecord(
        index=index, outcome=outcome, status=200, intended_ns=ns[0], dispatched_ns=ns[0], written_ns=ns[0],
        first_byte_ns=ns[1], event_ns=(ns[1], ns[2]), event_tokens=(1, 3), ended_ns=ns[2], input_tokens=8,
        output_tokens=4, cached_tokens=0, finish_reason="length", detail=None,
    )  # fmt: skip


class Simulated:
    """A queue before four slots of a tenth of a second each, whatever the rate."""

    def __init__(self, fails_above=math.inf):
        self.fails_above, self.asked = fails_above, []

    def __call__(self, workload):
        self.asked.append(workload)
        rng = np.random.default_rng(workload.seed)
        if workload.request_rate is None:
            arrivals = np.zeros(workload.requests)
        else:
            arrivals = np.cumsum(rng.exponential(1 / workload.request_rate, workload.requests))
        free, records = [0.0] * SLOTS, []
        for index, at in enumerate(arrivals):
            begins = max(at, min(free))
            free[free.index(min(free))] = begins + SERVICE_S
            bad = (workload.request_rate or 0) > self.fails_above
            outcome = RequestOutcome.TIMEOUT if bad else RequestOutcome.SUCCESS
            records.append(record(index, at, begins + 0.01, begins + SERVICE_S, outcome))
        client = ClientHealth(wall_ns=1, cpu_ns=0, run_queue_wait_ns=0, dispatch_lag_p99_ns=0, loop="none")
        run = LoadRun(records=tuple(records), started_ns=0, ended_ns=records[-1].ended_ns, client=client)
        return summarize(run, engine="one", model="m", workload=workload), run


def search(drive=None, **plan):
    lines = []
    found = find_capacity(
        CapacityPlan(**{"workload": CHAT, **plan}), drive or Simulated(), progress=lines.append, clock=lambda: 0.0
    )
    return found, lines


def test_the_capacity_of_four_slots_is_found_from_a_pilot_within_twelve_loads():
    drive = Simulated()
    found, lines = search(drive)
    assert drive.asked[0].request_rate is None, "the pilot is a closed loop"
    assert len(found.capacity.probes) <= 11
    assert found.capacity.low <= found.capacity.rate <= found.capacity.high
    assert 0.7 * SLOTS / SERVICE_S <= found.capacity.rate <= 1.05 * SLOTS / SERVICE_S
    assert all(asked.request_rate and asked.max_concurrency is None for asked in drive.asked[1:])
    assert len({asked.seed for asked in drive.asked}) == len(drive.asked), "no prompt is sent twice"
    assert lines[0] == "chat: capacity: pilot: how many requests a second does a closed loop get through?"
    assert any("of 300 requests met the service level" in line for line in lines)


def test_the_search_reckons_with_what_really_arrived():
    drive = Simulated()
    found, _ = search(drive, sweep=())
    apart = [math.log(probe.arrived / probe.rate) for probe in found.capacity.probes]
    assert 0.5 / math.sqrt(CHAT.requests) < np.std(apart) < 2 / math.sqrt(CHAT.requests)
    first, asked = found.capacity.probes[0], drive.asked[1]
    gaps = np.random.default_rng(asked.seed).exponential(1 / asked.request_rate, asked.requests)
    assert first.arrived == pytest.approx((asked.requests - 1) / gaps[1:].sum())


@pytest.mark.parametrize("start", [{}, {"request_rate": 20.0}])
def test_few_requests_are_no_burst_that_a_queue_takes_at_any_rate(start):
    """Twenty are over before anybody waits for long: a probe lasts until a queue could have built up."""
    sustained = SLOTS / SERVICE_S
    drive = Simulated()
    found, _ = search(drive, workload=replace(CHAT, requests=20, **start))
    assert found.capacity.rate is not None
    assert found.capacity.rate <= 1.1 * sustained
    sent = [asked for asked in drive.asked if asked.request_rate and asked.max_concurrency is None]
    probes, sweep = sent[: len(found.capacity.probes)], sent[len(found.capacity.probes) :]
    assert all(probe.requests / probe.request_rate >= 20 * LEVEL.ttft_s for probe in probes)
    assert all(load.requests / load.request_rate >= 0.9 * 20 * LEVEL.ttft_s for load in sweep[1:])


def test_answers_that_take_long_make_probes_long():
    """A level that says nothing of waiting: ten answers, one after another."""
    level = ServiceLevel(tpot_s=10.0)
    drive = Simulated()
    search(drive, workload=replace(CHAT, requests=5, service_level=level), ceiling=30.0, sweep=())
    lengths = [asked.requests / asked.request_rate for asked in drive.asked if asked.request_rate]
    assert min(lengths) >= 10 * SERVICE_S


def test_probes_that_may_not_be_long_enough_say_by_how_much_the_capacity_may_be_too_high():
    patient = replace(CHAT, requests=40, service_level=ServiceLevel(ttft_s=30.0))
    drive = Simulated()
    found, _ = search(drive, workload=patient, sweep=(), ceiling=60.0)
    assert max(asked.requests / asked.request_rate for asked in drive.asked if asked.request_rate) < 61
    (told,) = [why for why in found.warnings if why.startswith("a probe lasts ")]
    assert "needs 600 s at this service level for a queue to build up" in told
    assert "too high by 50%" in told
    hurried, _ = search(workload=replace(CHAT, requests=40), sweep=(), budget_s=12.0)
    assert [why for why in hurried.warnings if why.startswith("a probe lasts 1.36 s ")]
    enough, _ = search(sweep=())
    assert not [why for why in enough.warnings if why.startswith("a probe lasts ")]


def test_the_sweep_gives_the_curve_a_flat_part_and_a_knee():
    found, _ = search(sweep=(0.2, 0.5, 2.0))
    rates = [point.rate for point in found.curve]
    assert rates == sorted(rates)
    assert len(rates) == len(found.capacity.probes) + 3
    assert found.curve[0].met == 1.0
    assert found.curve[-1].met < 0.5
    bend = knee_of(found.curve)
    assert 0.5 * found.capacity.rate <= bend.rate < 2 * found.capacity.rate
    section = capacity_section(
        "one", "chat", found.capacity, curve=found.curve, level=LEVEL, target=0.99, description="x"
    )
    assert section.sentences[0].startswith("one takes ")
    assert "while 99 % of the requests meet TTFT ≤ 200 ms" in section.sentences[0]
    assert section.sentences[1].startswith("the knee of its curve is at ")
    assert len(section.tables[0].rows) == len(rates)
    assert [row[-1] for row in section.tables[0].rows].count("knee") == 1
    assert {plot.title for plot in section.lines} >= {"Throughput-latency curve", "TTFT over the arrival rate"}


def test_a_rate_of_its_own_is_where_the_search_starts():
    drive = Simulated()
    search(drive, workload=Workload(name="chat", input_tokens=8, output_tokens=4, requests=100, request_rate=30.0,
                                    service_level=LEVEL), sweep=())  # fmt: skip
    assert drive.asked[0].request_rate == 30.0


def test_what_fails_at_every_rate_has_no_capacity_and_no_curve_is_measured():
    found, _ = search(Simulated(fails_above=0.0), most=5)
    assert found.capacity.rate is None
    assert found.capacity.low == 0
    assert not found.invalid, "that nothing completes beyond the capacity breaks no measurement"
    assert any("0 of 300 requests completed" in warning for warning in found.warnings)
    assert len(found.summaries) == 5  # one pilot, four probes, no sweep


def test_a_budget_ends_the_search_and_says_so():
    time_s = iter(range(0, 10_000, 10))
    lines = []
    found = find_capacity(
        CapacityPlan(workload=CHAT, budget_s=45.0),
        Simulated(),
        progress=lines.append,
        clock=lambda: float(next(time_s)),
    )
    assert len(found.capacity.probes) < 6
    assert any(warning.startswith("the budget ended the search after ") for warning in found.warnings)


@pytest.mark.parametrize(("level_s", "broken"), [(0.2, True), (5.0, False)])
def test_a_late_client_breaks_a_search_only_where_it_is_late_by_much_of_the_level(level_s, broken):
    drive = Simulated()

    def late(workload):
        summary, run = drive(workload)
        lags = {"client_loop_lag_p99_s": 0.05, "client_dispatch_lag_p99_s": 0.01}
        return replace(summary, invalid=(f"late: {BOTTLENECK}",), facts={**summary.facts, **lags}), run

    found, _ = search(late, workload=replace(CHAT, service_level=ServiceLevel(ttft_s=level_s)), most=4, sweep=())
    assert bool(found.invalid) == broken
    assert any(BOTTLENECK in doubt for doubt in (found.invalid if broken else found.warnings))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"workload": Workload(name="w", input_tokens=8, output_tokens=4, requests=9, max_concurrency=1)},
         "capacity of 'w': the workload states no service level; give it one, such as service_level=ServiceLevel("),
        ({"most": 3}, "capacity of 'chat': most=3 must be 4 or more"),
        ({"sweep": (0.0,)}, "capacity of 'chat': sweep=0.0 must be shares above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_told(wrong, told):
    with pytest.raises(ConfigError) as caught:
        CapacityPlan(**{"workload": CHAT, **wrong})
    assert told in str(caught.value)


# ---------------------------------------------------------------------- judging


def limits(floor):
    limit = Limit(metric="capacity_rps", maximum=None, minimum=floor, tolerance=None, required=False, where="here",
                  text=f"≥ {floor:g} req/s")  # fmt: skip
    table = LimitTable(match=Match(), limits={"capacity_rps": limit}, where="here")
    return Thresholds(tables=(table,), quality_tasks={})


def judged(summary, floor):
    subject = Subject(hardware="h", model="m", engine="one", workload="chat")
    (verdict,) = judge_all(limits(floor), subject, summary, ["capacity_rps"])
    return verdict


def test_a_floor_is_judged_by_the_whole_interval():
    found, _ = search(sweep=())
    summary = capacity_summary(found, engine="one", model="m")
    low, high = summary.facts["capacity_rps_low"], summary.facts["capacity_rps_high"]
    assert judged(summary, 0.9 * low).word == "PASS (1 launch)"
    assert str(judged(summary, 1.1 * high).outcome) == "FAIL"
    between = judged(summary, (low + high) / 2)
    assert str(between.outcome) == "INCONCLUSIVE"
    assert "give each probe more requests" in between.reason
    assert (between.interval.low, between.interval.high, between.interval.replicate) == (low, high, "probe")


def test_a_capacity_beyond_the_ceiling_still_passes_a_floor_below_it():
    found, _ = search(ceiling=10.0)
    summary = capacity_summary(found, engine="one", model="m")
    assert summary.metrics["capacity_rps"].value is None
    assert summary.facts["capacity_rps_high"] is None
    assert str(judged(summary, 9.0).outcome) == "PASS"
    assert str(judged(summary, 20.0).outcome) == "INCONCLUSIVE"


# ---------------------------------------------------------------------- a live server


def test_a_live_server_of_four_slots_is_searched_through_the_load_process(tmp_path):
    environment = gather_environment(tmp_path, gpus=(), driver=None)
    command = (sys.executable, str(SERVER), "--slots", str(SLOTS), "--ttft-ms", "10", "--tpot-ms", "30")
    config = EngineConfig(name="one", model="reference", command=command)
    pool = EnginePool(engines={"one": config}, environment=environment, directory=tmp_path)
    try:
        engine = pool.acquire("one")

        def drive(workload):
            runs = []
            return measure(engine, workload, keep=runs.append), runs[-1]

        plan = CapacityPlan(workload=replace(CHAT, requests=120), most=4, sweep=())
        found = find_capacity(plan, drive, progress=lambda _line: None)
    finally:
        pool.close()
    assert [why for why in found.invalid if BOTTLENECK not in why] == []  # other tests beside this one may make it so
    assert len(found.summaries) == 4
    pilot = found.summaries[0].metrics["request_throughput"].value
    assert pilot == pytest.approx(SLOTS / SERVICE_S, rel=0.35)
    assert found.capacity.probes[0].rate == pytest.approx(0.75 * pilot)
    assert all(len(probe.uses) >= 120 for probe in found.capacity.probes)
