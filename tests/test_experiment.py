"""Experiments on real processes: launches as often as asked, each with a log and a life of its own."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.domain.environment import Environment
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import EngineError, EngineExited
from pytest_vllmperf.experiment import PoolLauncher, measured_on
from pytest_vllmperf.pool import EnginePool

TINY = Workload(name="tiny", input_tokens=16, output_tokens=4, requests=4, max_concurrency=2)
MACHINE = Environment(
    hardware="CPU test",
    device="cpu",
    gpus=(),
    driver=None,
    cpu="test",
    cores=1,
    memory_bytes=1,
    platform="",
    python="",
    packages={},
    commit=None,
    dirty=None,
    warnings=(),
)


@pytest.fixture
def engine(fake_command: tuple[str, ...]) -> Callable[..., EngineConfig]:
    return partial(EngineConfig, model="fake-model", command=fake_command)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EnginePool]:
    pool = EnginePool(engines={}, environment=MACHINE, directory=tmp_path)
    yield pool
    pool.close()


@pytest.fixture
def launcher(pool: EnginePool) -> PoolLauncher:
    return PoolLauncher(pool=pool, measure_one=partial(measured_on, progress=lambda _line: None))


def test_every_launch_is_a_process_of_its_own_with_its_own_log(launcher, engine, tmp_path):
    """C07."""
    pids = []
    launcher.look = lambda handle: pids.append(handle.pid)
    launches = [launcher.measure(engine(name="one"), [TINY]) for _ in range(2)]
    assert [launch.number for launch in launches] == [1, 2]
    assert len(set(pids)) == 2
    assert {path.name for path in tmp_path.glob("*.log")} == {"one.log", "one.2.log"}
    assert all(launch.summaries["tiny"].completed == 4 for launch in launches)
    assert all((launch.value("startup", "time_to_ready") or 0) > 0 for launch in launches)


def test_nothing_is_left_alive_between_launches(launcher, engine):
    pids = []
    launcher.look = lambda handle: pids.append(handle.pid)
    launcher.measure(engine(name="one"), [TINY])
    (pid,) = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_configuration_made_up_during_the_run_is_launched_under_its_own_name(launcher, engine):
    launcher.measure(engine(name="one"), [])
    made_up = launcher.measure(engine(name="one-without", env={"X": "1"}), [TINY])
    assert (made_up.engine, made_up.number) == ("one-without", 1)


def test_one_name_cannot_mean_two_configurations(launcher, engine):
    launcher.measure(engine(name="one"), [])
    with pytest.raises(EngineError, match="'one' is in this run already with another configuration; rename one"):
        launcher.measure(engine(name="one", env={"X": "1"}), [])


def test_an_engine_that_dies_while_measured_is_told_with_its_cause(launcher, engine):
    with pytest.raises(EngineExited, match="after it was ready"):
        launcher.measure(engine(name="one", args={"fake-exit-after-requests": 5}), [TINY])


def test_a_failed_launch_may_be_tried_again_by_an_experiment(launcher, engine, pool):
    dying = engine(name="one", args={"fake-exit-after-requests": 5})
    for _ in range(2):
        with pytest.raises(EngineExited):
            launcher.measure(dying, [TINY])
    assert pool.launches("one") == 2


def test_a_value_of_a_broken_measurement_is_no_value(launcher, engine):
    launch = launcher.measure(engine(name="one", args={"fake-shape": "http-500", "fake-shape-after": 1}), [TINY])
    assert launch.summaries["tiny"].invalid
    assert launch.value("tiny", "ttft_mean") is None
    assert launch.value("unasked", "ttft_mean") is None
