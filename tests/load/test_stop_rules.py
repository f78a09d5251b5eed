"""Runs that end early: time is over, enough is known, too much has failed."""

import random

import numpy as np
import pytest
from reference import MODEL, ReferenceServer, reference_server
from serving import TOKENS, small

from pytest_vllmperf.domain.records import LoadRun
from pytest_vllmperf.domain.stats import relative_half_width
from pytest_vllmperf.domain.workload import Precision, Workload
from pytest_vllmperf.errors import WorkloadError
from pytest_vllmperf.load.driver import LoadProgress, run_load


def load(server: ReferenceServer, workload: Workload, **how: object) -> LoadRun:
    return run_load(workload, base_url=server.base_url, model=MODEL, api_key=None, token_range=TOKENS, seed=1, **how)


def test_nothing_is_sent_after_max_seconds_and_what_is_in_flight_is_waited_for() -> None:
    with reference_server("--ttft-ms", "80", "--tpot-ms", "10") as server:
        run = load(server, small(requests=500, max_concurrency=4, max_seconds=1.0))
    assert run.stopped == "max_seconds=1 were over"
    assert 0 < len(run.records) < 500
    assert run.unsent == 500 - len(run.records)
    assert all(record.succeeded for record in run.records)
    assert max(record.dispatched_ns for record in run.records) - run.started_ns <= 1_050_000_000


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_ends_once_the_mean_is_known_well_enough(workers: int) -> None:
    noise = ("--ar1-sd", "0.1", "--noise-seed", "7", "--ttft-ms", "10", "--tpot-ms", "2")
    until = Precision(metric="tpot_mean", within=0.05)
    with reference_server(*noise) as server:
        run = load(server, small(requests=5000, max_concurrency=8, output_tokens=20, until=until), workers=workers)
    assert run.stopped is not None
    assert run.stopped.startswith("tpot_mean is known within ")
    assert 30 <= len(run.records) < 2500
    assert run.unsent + len(run.records) == 5000


@pytest.mark.parametrize("shape", ["http-500", "in-band-error", "cut", "slow-stall"])
def test_a_hopeless_run_ends_within_seconds(shape: str) -> None:
    """Every third answer is broken; thousands were planned. One that hangs forever shows when it times out."""
    with reference_server("--shape", shape, "--shape-every", "3", "--ttft-ms", "20") as server:
        run = load(server, small(requests=20_000, max_concurrency=4, max_error_rate=0.0, timeout_s=1.0))
    assert run.stopped is not None
    assert run.stopped.endswith("requests had failed, and max_error_rate=0 allows 0 of 20000")
    assert len(run.records) + run.unsent + run.abandoned == 20_000
    assert run.unsent > 10_000
    failed_ns = min(record.ended_ns for record in run.records if not record.succeeded)
    assert run.ended_ns - failed_ns <= 5e9, "told within half a second, and two seconds for what is in flight"


def test_a_hopeless_run_that_has_sent_everything_gives_up_what_hangs() -> None:
    """Of twenty at once one fails at once and the others would take a minute."""
    with reference_server("--shape", "http-500", "--shape-every", "20", "--ttft-ms", "60000") as server:
        run = load(server, small(requests=20, max_concurrency=20, max_error_rate=0.0, timeout_s=90.0))
    assert (len(run.records), run.unsent, run.abandoned) == (1, 0, 19)
    assert run.stopped == "1 requests had failed, and max_error_rate=0 allows 0 of 20"
    assert run.ended_ns - run.records[0].ended_ns <= 5e9


def test_as_many_failures_as_are_allowed_do_not_end_a_run() -> None:
    with reference_server("--shape", "http-429", "--shape-every", "10", "--ttft-ms", "30") as server:
        run = load(server, small(requests=60, max_concurrency=2, max_error_rate=0.1))
    assert run.stopped is None
    assert sum(not record.succeeded for record in run.records) == 6


def test_progress_tells_pace_and_first_tokens_while_the_load_runs() -> None:
    told: list[LoadProgress] = []
    with reference_server("--ttft-ms", "50", "--tpot-ms", "10") as server:
        load(server, small(requests=40, max_concurrency=8, output_tokens=30), progress=told.append)
    paces = [look.tokens_per_s for look in told if look.tokens_per_s is not None]
    assert paces
    assert 0 < max(paces) < 8 * 110, "eight streams of a hundred tokens a second"
    assert min(look.ttft_s for look in told if look.ttft_s is not None) >= 0.05
    assert told[-1] == LoadProgress(finished=40, failed=0, planned=40)


# ---------------------------------------------------------------------- the interval


def test_the_interval_covers_the_mean_of_noise_that_remembers() -> None:
    draw, covered, repeats = random.Random(3), 0, 300
    for _ in range(repeats):
        state, samples = 0.0, []
        for _ in range(200):
            state = 0.6 * state + draw.gauss(0, 0.08)
            samples.append(1.0 + state)
        width = relative_half_width(samples)
        assert width is not None
        covered += abs(np.mean(samples) - 1.0) <= width * np.mean(samples)
    assert covered / repeats >= 0.90


@pytest.mark.parametrize("samples", [[], [1.0, 2.0], [float("nan")] * 9, [0.0] * 9, [-1.0, -2.0, -1.5]])
def test_an_interval_that_cannot_be_told_is_none(samples: list[float]) -> None:
    assert relative_half_width(samples) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"metric": "tpot"}, "metric='tpot' must be one of ttft_mean, service_ttft_mean, tpot_mean"),
        ({"within": 2}, "within=2 must be above 0 and below 1"),
        ({"minimum_requests": 1}, "minimum_requests=1 must be a whole number, 3 or more"),
    ],
)
def test_a_precision_that_makes_no_sense_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        Precision(**{"metric": "tpot_mean", "within": 0.02, **values})
