"""Several first starts on one compile cache: one after the other, and beside each other once it is filled."""

import shutil
import threading
import time

import pytest
from foreign_vllm import foreign_vllm
from test_pool import CPU

from pytest_vllmperf.adapters.leases import HostLeases
from pytest_vllmperf.domain.engine import EngineConfig
from pytest_vllmperf.errors import EngineError
from pytest_vllmperf.pool import EnginePool

SLOW = {"fake-start-delay-s": 1.0}
FLAGS = """
parser.add_argument("--fake-start-delay-s")
parser.add_argument("--fake-fail-start")
parser.add_argument("--enforce-eager", action="store_true")
"""


class Starts:
    """Pools as of several processes, which start their engine at the same moment."""

    def __init__(self, folder):
        self.root = folder / "cache"
        (self.root / "torch_compile_cache").mkdir(parents=True)
        self._folder = folder
        self._python = foreign_vllm(folder / "env", version="0.32.0", flags=FLAGS)
        self._barrier = threading.Barrier(2)
        self.lines: list[tuple[float, str]] = []
        self.errors: list[EngineError] = []

    def both(self, **changes):
        """Start two engines at once; in ``lines`` stands what each said and when."""
        self.lines.clear()
        args = changes.pop("args", {})
        threads = []
        for name in ("one", "two"):
            own = args.get(name, {})
            threads.append(threading.Thread(target=self._start, args=(name, {**SLOW, **own}, changes)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def _start(self, name, args, changes):
        config = EngineConfig(
            name=name,
            model="fake",
            python=self._python,
            args=args,
            env={"VLLM_CACHE_ROOT": str(self.root), "XDG_CACHE_HOME": str(self._folder / "flags")},
            **changes,
        )
        leases = HostLeases(self._folder / "locks", share_cpu=True, project="/a/project")
        pool = EnginePool(
            engines={name: config},
            environment=CPU,
            directory=self._folder / "logs",
            leases=leases,
            progress=lambda line: self.lines.append((time.monotonic(), line)),
        )
        try:
            self._barrier.wait(30)
            pool.acquire(name)
        except EngineError as error:
            self.errors.append(error)
        finally:
            pool.close()

    def at(self, text):
        """When each line with ``text`` was said, in order."""
        return [at for at, line in self.lines if text in line]

    def overlap(self):
        """Whether the second began before the first was ready."""
        return self.at("starting (pid")[1] < self.at(": ready after")[0]


@pytest.fixture
def starts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "flags"))
    return Starts(tmp_path)


def test_first_starts_wait_for_each_other_and_later_ones_do_not(starts):
    starts.both()
    assert not starts.overlap()
    (waited,) = (line for _, line in starts.lines if "waiting" in line)
    assert f"for the compile cache {starts.root}, held by engine" in waited
    assert "of /a/project (pid" in waited
    starts.both()
    assert starts.overlap()


def test_an_emptied_cache_is_filled_by_one_again(starts):
    starts.both()
    shutil.rmtree(starts.root / "torch_compile_cache")
    (starts.root / "torch_compile_cache").mkdir()
    starts.both()
    assert not starts.overlap()


def test_an_engine_that_does_not_compile_waits_for_nobody(starts):
    starts.both(args={name: {"enforce-eager": True} for name in ("one", "two")})
    assert starts.overlap()


def test_a_first_start_that_fails_lets_the_next_one_try(starts):
    starts.both(args={"one": {"fake-fail-start": "ValueError: broken"}, "two": {}})
    assert len(starts.errors) == 1
    assert len(starts.at("two: ready after")) == 1
    assert len(starts.at("starting (pid")) == 2
