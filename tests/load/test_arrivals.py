"""How requests arrive: ramps, bursts, recorded traces; and the hash that names a schedule."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import TOKENS, FakeServer, small

from pytest_vllmperf.domain.prompts import TraceReplay
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import WorkloadError
from pytest_vllmperf.load.questions import questions
from pytest_vllmperf.load.schedule import arrival_offsets_ns, schedule_hash, slot_openings_ns
from pytest_vllmperf.load.trace_files import TraceEntry, read_trace

Serve = Callable[..., FakeServer]


def opened(**changes: object) -> Workload:
    return small(**{"request_rate": 10.0, "burstiness": math.inf, "max_concurrency": None, **changes})


def test_a_rate_that_grows_sends_half_as_many_within_its_ramp_and_then_keeps_the_pace() -> None:
    offsets = arrival_offsets_ns(opened(ramp_s=10.0), count=200, seed=0)
    assert offsets is not None
    seconds = [at * 1e-9 for at in offsets]
    assert sum(at < 10.0 for at in seconds) == 50
    for earlier, later in itertools.pairwise(seconds[50:]):
        assert later - earlier == pytest.approx(0.1)
    first, second = sum(at < 5.0 for at in seconds), sum(5.0 <= at < 10.0 for at in seconds)
    assert second == pytest.approx(3 * first, abs=2), "an even growth sends three times as many in the second half"


@given(
    rate=st.floats(0.1, 1000.0),
    ramp_s=st.floats(0.0, 100.0),
    shape=st.sampled_from([0.5, 1.0, 4.0, math.inf]),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_offsets_begin_at_0_and_never_go_back(rate: float, ramp_s: float, shape: float, size: int, seed: int) -> None:
    workload = opened(request_rate=rate, ramp_s=ramp_s, burstiness=shape, burst_size=size)
    offsets = arrival_offsets_ns(workload, count=40, seed=seed)
    assert offsets is not None
    assert offsets[0] == 0
    assert list(offsets) == sorted(offsets)
    assert offsets == arrival_offsets_ns(workload, count=40, seed=seed)


def test_bursts_arrive_together_at_the_same_mean_rate() -> None:
    offsets = arrival_offsets_ns(opened(burst_size=5), count=20, seed=0)
    assert offsets is not None
    assert [at // 1_000_000 for at in offsets] == [0] * 5 + [500] * 5 + [1000] * 5 + [1500] * 5


def test_the_slots_of_a_closed_loop_open_one_after_the_other(serve: Serve) -> None:
    assert slot_openings_ns(slots=4, ramp_s=2.0) == (0, 500_000_000, 1_000_000_000, 1_500_000_000)
    run = serve("--fake-ttft-ms", "500").load(small(requests=4, max_concurrency=4, ramp_s=0.4))
    for place, record in enumerate(run.records):
        assert record.dispatched_ns - run.started_ns >= place * 100_000_000
    assert run.records[3].dispatched_ns < run.records[0].ended_ns, "a slot opens although none became free"


# ---------------------------------------------------------------------- traces


def trace(tmp_path: Path, *lines: object, speed: float = 1.0, requests: int | None = None) -> Workload:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return Workload(name="replay", prompts=TraceReplay(path=str(path), speed=speed), requests=requests or len(lines))


def own(at: float, asked: int = 8, answered: int = 4) -> dict[str, object]:
    return {"timestamp": at, "input_tokens": asked, "output_tokens": answered}


def mooncake(at: int, asked: int, answered: int, *blocks: int) -> dict[str, object]:
    return {"timestamp": at, "input_length": asked, "output_length": answered, "hash_ids": list(blocks)}


def test_a_trace_gives_arrivals_and_lengths(tmp_path: Path) -> None:
    entries = read_trace(trace(tmp_path, own(100.0, 5, 3), own(100.5, 7, 2), own(102.0), speed=2.0))
    assert entries == (
        TraceEntry(at_ns=0, input_tokens=5, output_tokens=3),
        TraceEntry(at_ns=250_000_000, input_tokens=7, output_tokens=2),
        TraceEntry(at_ns=1_000_000_000, input_tokens=8, output_tokens=4),
    )


def test_equal_blocks_of_a_mooncake_trace_are_equal_tokens_and_another_seed_has_others(tmp_path: Path) -> None:
    workload = trace(tmp_path, mooncake(0, 1100, 2, 7, 8, 9), mooncake(3000, 1030, 2, 7, 8, 4))
    entries = read_trace(workload)
    assert entries is not None
    assert [entry.at_ns for entry in entries] == [0, 3_000_000_000]

    def drawn(seed: int) -> list[tuple[int, ...]]:
        found = questions(workload, token_range=TOKENS, seed=seed, trace=entries)
        return [tuple(question.turns[0]) for question in found]

    first, second = drawn(1)
    assert (len(first), len(second)) == (1100, 1030)
    assert first[:1024] == second[:1024]
    assert first[1024:1030] != second[1024:1030]
    assert drawn(2)[0][:512] != first[:512]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", r"trace\.jsonl:2: not JSON"),
        ("[1]", r"trace\.jsonl:2: each line must be an object"),
        (own(-1.0), r'trace\.jsonl:2: "timestamp" must be a number, 0 or more, not -1\.0'),
        (own(0.5), r"trace\.jsonl:2: timestamp 0\.5 is before the one above it: sort the trace"),
        (own(2.0, 0), r'trace\.jsonl:2: "input_tokens" must be a whole number, 1 or more, not 0'),
        (mooncake(2000, 600, 1, 5), r'600 prompt tokens are 2 blocks of 512, and "hash_ids" names 1'),
        (mooncake(2000, 600, True), r'"output_length" must be a whole number, 1 or more, not True'),
    ],
)
def test_a_trace_that_cannot_be_read_is_told_with_its_line(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        read_trace(trace(tmp_path, own(1.0), line))


def test_a_trace_that_is_too_short_or_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"holds 1 requests, and requests=3 asks for more"):
        read_trace(trace(tmp_path, own(1.0), requests=3))
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_trace(Workload(name="w", prompts=TraceReplay(path=str(tmp_path / "none")), requests=1))


def test_a_trace_is_replayed_at_its_times_with_its_lengths(serve: Serve, tmp_path: Path) -> None:
    workload = trace(tmp_path, own(5.0, 6, 3), own(5.1, 9, 5), own(5.2, 4, 2))
    run = serve().load(workload)
    assert [record.intended_ns - run.started_ns for record in run.records] == [0, 100_000_000, 200_000_000]
    assert [(record.input_tokens, record.output_tokens) for record in run.records] == [(6, 3), (9, 5), (4, 2)]
    assert all(record.succeeded for record in run.records)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"request_rate": 1.0}, "request_rate=1.0 must be left out: the trace says when requests arrive"),
        ({"output_tokens": 4}, "output_tokens=4 must be left out: TraceReplay decides it"),
        ({"ramp_s": 1.0}, "ramp_s=1.0 must be left out"),
    ],
)
def test_what_a_trace_decides_is_not_given_beside_it(changes: dict[str, object], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        Workload(**{"name": "w", "prompts": TraceReplay(path="t"), "requests": 1, **changes})


# ---------------------------------------------------------------------- several processes, one schedule


def test_the_hash_names_prompts_and_arrivals_and_nothing_else() -> None:
    def named(workload: Workload, seed: int = 1) -> str:
        offsets = arrival_offsets_ns(workload, count=workload.requests, seed=seed)
        return schedule_hash(offsets, questions(workload, token_range=TOKENS, seed=seed))

    base = named(opened())
    assert len(base) == 16
    assert base == named(opened(timeout_s=3.0))
    assert len({base, named(opened(), seed=2), named(opened(request_rate=9.0)), named(opened(output_tokens=3))}) == 4


@pytest.mark.parametrize("changes", [{}, {"request_rate": 200.0}])
def test_several_load_processes_share_one_schedule(serve: Serve, changes: dict[str, object]) -> None:
    server = serve("--fake-ttft-ms", "20")
    alone = server.load(small(requests=24, max_concurrency=5, **changes))
    shared = server.load(small(requests=24, max_concurrency=5, workers=3, **changes))
    assert [record.index for record in shared.records] == list(range(24))
    assert all(record.succeeded for record in shared.records)
    assert (alone.client.workers, shared.client.workers) == (1, 3)
    assert alone.schedule_hash == shared.schedule_hash != ""
    edges = [(r.dispatched_ns, 1) for r in shared.records] + [(r.ended_ns, -1) for r in shared.records]
    assert max(itertools.accumulate(step for _, step in sorted(edges))) <= 5
    if changes:
        intended = [record.intended_ns - shared.started_ns for record in shared.records]
        assert intended == [record.intended_ns - alone.started_ns for record in alone.records]
