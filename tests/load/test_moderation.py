"""How long sockets may be left alone: nothing that is measured may depend on it."""

import random
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.load.moderation import Moderation

MS = 1_000_000


def paced(*, streams: int, gap_ns: int, rounds: int, spread_ns: int, seed: int = 1) -> list[tuple[int, int]]:
    """Arrivals, as moment and stream: each stream's events come ``gap_ns`` apart, in the same order in each round."""
    draw = random.Random(seed)
    offsets = sorted(draw.randrange(max(1, spread_ns)) for _ in range(streams))
    return [(turn * gap_ns + offset, stream) for turn in range(1, rounds + 1) for stream, offset in enumerate(offsets)]


class Client:
    """Reads arrivals as a moderated client does, without any time of its own."""

    def __init__(self, moderation: Moderation) -> None:
        self.wake_ups = 0
        self.pauses: list[int] = []
        self.waits: list[int] = []
        self.shared = 0
        self._moderation = moderation
        self._coming: deque[tuple[int, int]] = deque()
        self._read_ns: dict[int, int] = {}

    def run(self, arrivals: Iterable[tuple[int, int]]) -> None:
        self._coming = deque(sorted(arrivals))
        while self._coming:
            now = self._coming[0][0]
            self.wake_ups += 1
            found, _ = self._read(now)
            pause_ns = self._moderation.pause_ns()
            if not pause_ns:
                self._moderation.woke_up(now, found)
            while pause_ns:
                self.wake_ups += 1
                self.pauses.append(pause_ns)
                now += pause_ns
                served, last_ns = self._read(now)
                pause_ns, found = self._moderation.paused(found + served, now - last_ns), 0

    def _read(self, now: int) -> tuple[int, int]:
        """How many events had come by then, and when the last of them had."""
        streams = set()
        last_ns = now
        while self._coming and self._coming[0][0] <= now:
            last_ns, stream = self._coming.popleft()
            self.waits.append(now - last_ns)
            self.shared += stream in streams
            streams.add(stream)
            before_ns, self._read_ns[stream] = self._read_ns.get(stream), last_ns
            if before_ns is not None and not (self._coming and self._coming[0][0] <= now):
                self._moderation.spaced(last_ns - before_ns)
        return len(streams), last_ns


def test_many_streams_share_wake_ups() -> None:
    client = Client(Moderation())
    client.run(paced(streams=64, gap_ns=60 * MS, rounds=80, spread_ns=MS))
    assert client.wake_ups < 64 * 80 / 10
    assert client.shared == 0
    assert max(client.waits) <= 2 * MS


def test_streams_that_come_at_all_times_share_wake_ups_too() -> None:
    arrivals = paced(streams=1024, gap_ns=25 * MS, rounds=20, spread_ns=25 * MS)
    client = Client(Moderation())
    client.run(arrivals)
    assert client.wake_ups < len(arrivals) / 5
    assert client.shared == 0


@pytest.mark.parametrize(
    ("streams", "gap_ns"), [(1, 60 * MS), (1, 2_500_000), (8, 100 * MS)], ids=["slow", "fast", "a few"]
)
def test_where_nothing_is_gained_every_event_is_attended_to_at_once(streams: int, gap_ns: int) -> None:
    client = Client(Moderation())
    client.run(paced(streams=streams, gap_ns=gap_ns, rounds=300, spread_ns=gap_ns))
    assert client.pauses == []
    assert max(client.waits) == 0


@given(
    streams=st.integers(1, 200),
    gap_ns=st.integers(MS // 4, 200 * MS),
    spread=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_no_pause_is_longer_than_a_quarter_of_the_gap_or_two_milliseconds(
    streams: int, gap_ns: int, spread: float, seed: int
) -> None:
    client = Client(Moderation())
    client.run(paced(streams=streams, gap_ns=gap_ns, rounds=20, spread_ns=int(spread * gap_ns), seed=seed))
    assert max(client.pauses, default=0) <= min(gap_ns // 4, 2 * MS)
    assert client.shared == 0


@pytest.mark.parametrize(("answer_ns", "most_ns"), [(100 * MS, 0), (300 * MS, 1_500_000), (5_000 * MS, 2 * MS)])
def test_no_pause_is_longer_than_a_two_hundredth_of_an_answer(answer_ns: int, most_ns: int) -> None:
    moderation = Moderation()
    moderation.answered(answer_ns)
    client = Client(moderation)
    client.run(paced(streams=64, gap_ns=60 * MS, rounds=40, spread_ns=MS))
    assert max(client.pauses, default=0) == most_ns


def test_answers_that_become_short_end_the_pauses() -> None:
    moderation = Moderation()
    Client(moderation).run(paced(streams=64, gap_ns=60 * MS, rounds=40, spread_ns=MS))
    for _ in range(30):
        moderation.answered(20 * MS)
    client = Client(moderation)
    client.run(paced(streams=64, gap_ns=60 * MS, rounds=40, spread_ns=MS))
    assert client.pauses == []


def test_without_events_to_find_pauses_end() -> None:
    moderation = Moderation()
    busy = Client(moderation)
    busy.run(paced(streams=64, gap_ns=60 * MS, rounds=40, spread_ns=MS))
    assert busy.pauses
    lonely = Client(moderation)
    lonely.run(paced(streams=1, gap_ns=60 * MS, rounds=60, spread_ns=MS))
    assert len(lonely.pauses) < 30
    assert max(lonely.waits[30:]) == 0
