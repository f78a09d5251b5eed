"""The small parts: frames, the alarm, early reading of answers, health, targets."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_connection_fuzz import ASKED, recorded

from pytest_vllmperf.domain.records import ClientHealth
from pytest_vllmperf.load.alarm import Alarm, Attention, LagProbe
from pytest_vllmperf.load.compactor import Compactor
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.health import HealthClock, lag_p99_ns
from pytest_vllmperf.load.plan import FrameReader, Progress, decode_message, encode_frame
from pytest_vllmperf.load.target import Target


@given(
    counts=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=8),
    size=st.integers(1, 64),
)
def test_frames_survive_reads_of_any_size(counts: list[tuple[int, int]], size: int) -> None:
    sent = [Progress(finished=finished, reads=reads) for finished, reads in counts]
    data = b"".join(encode_frame(message) for message in sent)
    reader = FrameReader()
    got = [decode_message(body) for i in range(0, len(data), size) for body in reader.feed(data[i : i + size])]
    assert got == sent


def test_a_frame_of_absurd_length_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="a frame of 18446744073709551615 bytes"):
        FrameReader().feed(b"\xff" * 8)


@pytest.mark.parametrize("timerfd", [True, False])
def test_an_alarm_never_rings_early_and_the_last_setting_counts(timerfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not timerfd:
        monkeypatch.setattr("pytest_vllmperf.load.alarm._timer", lambda: (None, None))

    async def run() -> tuple[int, list[int]]:
        rung: list[int] = []
        done = asyncio.Event()

        def ring() -> None:
            rung.append(time.monotonic_ns())
            done.set()

        alarm = Alarm(asyncio.get_running_loop(), ring)
        at_ns = time.monotonic_ns() + 30_000_000
        alarm.set(at_ns - 20_000_000)
        alarm.set(at_ns)
        await asyncio.wait_for(done.wait(), 20)
        done.clear()
        alarm.set(0)  # long past: at once
        await asyncio.wait_for(done.wait(), 20)
        alarm.close()
        return at_ns, rung

    at_ns, rung = asyncio.run(run())
    assert len(rung) == 2
    # The loop's own timer may round down by its resolution; the precise one may not.
    assert rung[0] >= at_ns - (0 if timerfd else 1_000_000)


def test_answers_read_early_to_save_memory_are_the_same() -> None:
    def exchanges() -> list[Exchange]:
        return [Exchange(index=i, payload=b"", reads=[(i + 1, recorded("plain"))], ended_ns=9) for i in range(5)]

    asked = dict.fromkeys(range(5), ASKED)
    late = Compactor(output_tokens=asked, exact=True)
    expected = [late.record(exchange) for exchange in exchanges()]

    async def run() -> list[Exchange]:
        done = exchanges()
        room = len(recorded("plain")) + 200  # for one answer
        early = Compactor(output_tokens=asked, exact=True, most_stashed_bytes=room)
        for exchange in done:
            early.add(exchange)
        for _ in range(20):
            await asyncio.sleep(0)
        assert [len(exchange.reads) for exchange in done] == [0, 0, 0, 0, 1], "the oldest are read, up to the bound"
        assert [early.record(exchange) for exchange in done] == expected
        return done

    asyncio.run(run())
    assert all(record.succeeded for record in expected)


@pytest.mark.parametrize(
    ("lags", "expected"), [([], 0), ([7], 7), (range(1, 101), 99), (range(1, 201), 198), ([5, 1, 3], 5)]
)
def test_the_99th_percentile_of_lag_is_exceeded_by_one_percent_at_most(lags: list[int], expected: int) -> None:
    assert lag_p99_ns(list(lags)) == expected


def test_health_counts_only_what_came_after_its_start() -> None:
    async def run() -> ClientHealth:
        clock = HealthClock(asyncio.get_running_loop())
        await asyncio.sleep(0.1)
        until = time.process_time_ns() + 250_000_000
        while time.process_time_ns() < until:  # the loop attends to nothing meanwhile, and must say so
            pass
        await asyncio.sleep(0.05)
        return clock.read([Exchange(index=0, payload=b"", due_ns=5, dispatched_ns=12)])

    health = asyncio.run(run())
    assert health.cpu_ns >= 250_000_000
    assert health.wall_ns >= health.cpu_ns * 0.9
    assert (health.dispatch_lag_p99_ns, health.dispatch_lag_mean_ns, health.loop) == (7, 7, "asyncio")
    assert health.loop_lag_p99_ns is not None
    assert health.loop_lag_p99_ns >= 100_000_000


def test_targets_come_from_urls() -> None:
    plain = Target.of("http://127.0.0.1:8000/proxy")
    assert (plain.host, plain.port, plain.tls) == ("127.0.0.1", 8000, None)
    secure = Target.of("https://example.org")
    assert (secure.host, secure.port) == ("example.org", 443)
    assert secure.tls is not None
    with pytest.raises(ValueError, match=r"base_url '127\.0\.0\.1:8000' must look like http://host:port"):
        Target.of("127.0.0.1:8000")


@pytest.mark.parametrize(("event_gap_ms", "mean_ms"), [(0, 10), (4, 10), (60, 60), (900, 100)])
def test_lag_is_sampled_no_more_often_than_events_come(event_gap_ms: int, mean_ms: int) -> None:
    async def run() -> tuple[float, int]:
        attention = Attention()
        probe = LagProbe(asyncio.get_running_loop(), attention)
        attention.event_gap_ns = event_gap_ms * 1_000_000
        mean = sum(probe._gap_ns() for _ in range(4_000)) / 4_000
        probe.close()
        return mean, attention.mean_gap_ns

    mean_ns, told_ns = asyncio.run(run())
    assert told_ns == mean_ms * 1_000_000
    assert mean_ns == pytest.approx(told_ns, rel=0.1)


def test_who_looked_away_on_purpose_knows_since_when() -> None:
    async def run() -> tuple[int, int, int]:
        attention = Attention()
        now = time.monotonic_ns()
        watching = attention.away_ns(now)
        await asyncio.sleep(0)
        attention.left_ns = now - 10_000_000_000
        paused = attention.away_ns(now)
        await asyncio.sleep(0)
        attention.left_ns = None
        return watching, paused, attention.away_ns(now)

    watching, paused, after = asyncio.run(run())
    assert paused >= 10_000_000_000
    assert watching < 10_000_000_000
    assert after < 10_000_000_000
