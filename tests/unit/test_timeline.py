import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from streams import MS, answered, counters, failed, load_run

from pytest_vllmperf.domain.records import MemorySample, RequestOutcome
from pytest_vllmperf.domain.timeline import Timeline, timeline

FIRST = answered(dispatched_ms=10, written_ms=12, intended_ms=4, events_ms=(31, 41, 61), tokens=(2, 1, 3))
SECOND = answered(dispatched_ms=20, written_ms=21, events_ms=(71, 111), tokens=(1, 4))


def of(*records, **given) -> Timeline:
    found = timeline(load_run(*records), **given)
    assert found is not None
    return found


def test_nothing_sent_has_no_timeline() -> None:
    assert timeline(load_run()) is None


def test_time_counts_from_the_first_dispatch_to_the_last_end() -> None:
    assert of(FIRST, SECOND).duration_s == pytest.approx(0.101)


def test_tokens_are_counted_where_they_arrived() -> None:
    series = of(FIRST, SECOND).series["output_throughput"]
    assert (series.unit, series.bin_s) == ("tok/s", 0.01)
    tokens = {
        round(at, 3): round(rate * series.bin_s, 6) for at, rate in zip(series.at_s, series.values, strict=True) if rate
    }
    assert tokens == {0.02: 2, 0.03: 1, 0.05: 3, 0.06: 1, 0.10: 4}


def test_without_shares_a_requests_tokens_are_spread_over_its_events() -> None:
    series = of(answered(events_ms=(5, 15), output_tokens=6)).series["output_throughput"]
    assert [round(rate * series.bin_s, 6) for rate in series.values if rate] == [3, 3]


def test_concurrency_is_the_mean_number_in_flight_of_each_bin() -> None:
    series = of(FIRST, SECOND).series["concurrency"]
    assert series.values[:3] == (1, 2, 2)
    assert series.values[5] == pytest.approx(1.1)  # the first ends 1 ms into that bin


@given(
    st.lists(
        st.tuples(st.integers(0, 5_000), st.lists(st.integers(1, 5_000), min_size=1, max_size=8)),
        min_size=1,
        max_size=30,
    )
)
@example(requests=[(0, [90])])  # 90e6 * 1e-9 is a little more than 9 * 0.01
def test_nothing_is_lost_in_the_bins(requests: list[tuple[int, list[int]]]) -> None:
    records = [
        answered(dispatched_ms=start, events_ms=tuple(start + t for t in sorted(gaps)), tokens=(2,) * len(gaps))
        for start, gaps in requests
    ]
    found = of(*records)
    rate, busy = found.series["output_throughput"], found.series["concurrency"]
    assert len(rate.values) == len(busy.values) <= 80
    assert sum(rate.values) * rate.bin_s == pytest.approx(sum(2 * len(gaps) for _, gaps in requests), rel=1e-4)
    in_flight = sum((r.ended_ns - r.dispatched_ns) * 1e-9 for r in records)
    assert sum(busy.values) * busy.bin_s == pytest.approx(in_flight, rel=1e-4)


def test_the_slowest_come_first_with_their_phases_and_failed_ones_are_among_them() -> None:
    slowest = of(FIRST, SECOND, failed()).slowest
    assert [span.index for span in slowest] == [1, 0, 2]
    first = slowest[1]
    assert (first.intended_s, first.sent_s, first.first_token_s, first.ended_s) == (0.004, 0.012, 0.031, 0.061)
    assert slowest[2].outcome == str(RequestOutcome.TIMEOUT)
    assert slowest[2].first_token_s is None


def test_at_most_twenty_of_the_slowest_are_kept() -> None:
    assert len(of(*[FIRST] * 50).slowest) == 20


def test_memory_keeps_the_peak_of_each_bin_and_its_ceiling() -> None:
    memory = [MemorySample(at_ns=(10 + t) * MS, host_bytes=None, device_bytes=n) for t, n in ((0, 5), (1, 9), (2, 7))]
    memory.append(MemorySample(at_ns=30 * MS, host_bytes=100, device_bytes=None))
    found = of(FIRST, SECOND, memory=memory, device_memory_bytes=50)
    device, host = found.series["device_memory"], found.series["host_memory"]
    assert (device.values, device.unit, device.ceiling) == ((9.0,), "B", 50.0)
    assert (host.at_s, host.values, host.ceiling) == ((0.02,), (100.0,), None)


def test_what_was_never_sampled_is_not_there() -> None:
    found = of(FIRST, counters=[None, counters(generation_tokens=3)])
    assert set(found.series) == {"output_throughput", "concurrency"}
    assert "kv_cache_usage" in of(FIRST, counters=[counters(kv_cache_usage=0.5)]).series
