"""The opening of a measurement goes on until the engine has settled, and not for ever."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from unit.streams import answered, load_run

from pytest_vllmperf import TraceReplay, Workload
from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.warm_up import warm_up, warm_up_of

LONG = Workload(name="long", input_tokens=16, output_tokens=256, requests=100, max_concurrency=2)


def rounds(*ttft_ms: float, gap_ms: float = 10.0, last_s: float = 1.0) -> Iterator[LoadRun]:
    """What rounds of warm-up measure, one after the other; the last for ever."""
    for ttft in (*ttft_ms, *(ttft_ms[-1],) * 9):
        run = load_run(*(answered(events_ms=(ttft, ttft + gap_ms), tokens=(1, 1)) for _ in range(2)))
        yield replace(run, started_ns=0, ended_ns=round(last_s * 1e9))


def driven(workload: Workload, runs: Iterator[LoadRun]) -> tuple[object, list[str]]:
    parts: list[str] = []

    def drive(what: Workload, part: str) -> LoadRun:
        parts.append(part)
        assert what == warm_up_of(workload)
        return next(runs)

    return warm_up(workload, drive), parts


@pytest.mark.parametrize(
    ("ttft_ms", "count"),
    [((50, 50), 2), ((500, 50, 51), 3), ((500, 200, 100, 98), 4), ((900, 500, 200, 50), 4)],
)
def test_rounds_go_on_until_the_medians_hold_still_and_end_after_four(ttft_ms: tuple[float, ...], count: int) -> None:
    result, parts = driven(LONG, rounds(*ttft_ms))
    assert result.rounds == len(parts) == count
    assert parts == ["warm-up", "warm-up-1", "warm-up-2", "warm-up-3"][:count], "each has prompts of its own"
    settled = abs(ttft_ms[count - 1] / ttft_ms[count - 2] - 1) <= 0.25
    assert (result.doubt is None) == settled
    assert result.events_per_s == 4.0


def test_an_engine_that_did_not_settle_is_told() -> None:
    result, _ = driven(LONG, rounds(800, 400, 200, 100))
    assert result.doubt == "not settled after 4 rounds of warm-up: the last one moved ttft by 50%"


def test_a_long_round_is_not_repeated_for_ever() -> None:
    result, _ = driven(LONG, rounds(800, 400, 200, 100, last_s=9.0))
    assert result.rounds == 2


def test_a_short_measurement_has_a_short_opening() -> None:
    result, _ = driven(replace(LONG, requests=4, output_tokens=8), rounds(800, 400, 200))
    assert (result.rounds, result.doubt) == (1, None)


def test_an_engine_that_answers_nothing_is_not_asked_again() -> None:
    nothing = replace(load_run(), records=())
    result, _ = driven(LONG, iter([nothing]))
    assert (result.rounds, result.doubt) == (1, None)


def test_what_ends_or_shapes_a_measurement_does_not_shape_its_opening(tmp_path) -> None:
    opened = replace(
        LONG, request_rate=5.0, burst_size=4, burstiness=math.inf, ramp_s=30.0, max_seconds=1.0, max_concurrency=None
    )
    opening = warm_up_of(opened)
    assert (opening.request_rate, opening.burst_size, opening.ramp_s, opening.max_seconds) == (None, 1, 0.0, None)
    assert (opening.requests, opening.max_concurrency, opening.output_tokens) == (2, 2, 64)
    path = tmp_path / "trace.jsonl"
    lines = [
        f'{{"timestamp": {i}, "input_tokens": {tokens}, "output_tokens": 9}}' for i, tokens in enumerate((5, 9, 70))
    ]
    path.write_text("\n".join(lines))
    replayed = warm_up_of(Workload(name="t", prompts=TraceReplay(path=str(path)), requests=3, max_concurrency=3))
    assert (replayed.input_tokens, replayed.output_tokens, replayed.requests) == (9, 64, 3)
