"""Capacity: on simulated queues whose capacity is known, in few probes and with an interval that holds."""

import heapq
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllmperf.domain.capacity import CapacitySearch, Probe, knee
from pytest_vllmperf.domain.capacity_fit import episodes
from pytest_vllmperf.errors import ConfigError

SLOTS, SERVICE_S, LIMIT_S = 8, 0.2, 0.2
MULTI_SERVER = 25.49
"""Rate at which 1 % of an M/M/8 queue's customers wait longer than the limit, by Erlang's C formula."""


MANY_SLOTS, MANY_DETERMINISTIC = 32, 25.70
"""Likewise where 1 % of an M/D/32 queue's customers wait longer than a quarter of their second of service."""


def queue(rng: np.random.Generator, rate: float, requests: int = 2000) -> Probe:
    """Waiting times of an M/M/8 queue, as uses of the limit."""
    services = rng.exponential(SERVICE_S, requests)
    return queued(rng, rate, services, slots=SLOTS, limit_s=LIMIT_S)


def queued(rng: np.random.Generator, rate: float, services, *, slots: int, limit_s: float) -> Probe:
    free = [0.0] * slots
    uses = []
    arrivals = np.cumsum(rng.exponential(1 / rate, len(services)))
    for at, service in zip(arrivals, services, strict=True):
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + service)
        uses.append(float(begins - at + 0.001) / limit_s)
    arrived = float((len(services) - 1) / (arrivals[-1] - arrivals[0]))
    return Probe(rate=rate, uses=tuple(uses), arrived=arrived)


def searched(search: CapacitySearch, probe) -> list[Probe]:
    probes: list[Probe] = []
    while (rate := search.next_rate(probes)) is not None:
        probes.append(probe(rate))
    return probes


@pytest.fixture(scope="module")
def found():
    """Eight searches of the M/M/8 queue, from starts up to a factor of two beside it."""
    results = []
    for seed in range(8):
        rng, search = np.random.default_rng(seed), CapacitySearch(start=32 * math.exp(0.2 * (seed - 4)))
        probes = searched(search, lambda rate, rng=rng: queue(rng, rate))
        assert len(probes) <= 12
        results.append(search.result(probes))
    return results


def test_the_capacity_of_a_known_queue_is_found(found):
    errors = np.array([c.rate / MULTI_SERVER - 1 for c in found])
    assert np.sqrt((errors**2).mean()) <= 0.04
    assert abs(errors.mean()) <= 0.025
    assert abs(errors).max() <= 0.1


def test_the_interval_holds_the_capacity_and_is_not_needlessly_wide(found):
    assert sum(c.low <= MULTI_SERVER <= c.high for c in found) >= 7
    assert np.mean([(c.high - c.low) / 2 / c.rate for c in found]) <= 0.13


def test_what_really_arrived_tells_more_than_what_was_asked():
    """A server whose uses follow what arrived, by chance 5 % beside what was asked."""
    errors = []
    for seed in range(6):
        rng, asked = np.random.default_rng(seed), np.linspace(8.5, 11, 8)
        arrived = asked * np.exp(rng.normal(0, 0.05, 8))
        probes = [replace(steep(a), rate=float(r), arrived=float(a)) for r, a in zip(asked, arrived, strict=True)]
        blind = [replace(p, arrived=None) for p in probes]
        search = CapacitySearch(start=10)
        errors.append([math.log(search.result(told).rate) for told in (probes, blind)])
    aware, unaware = np.std(errors, axis=0)
    assert aware < 0.5 * unaware


def test_a_probe_that_was_given_up_early_changes_little(found):
    """Beyond the capacity requests fail, and the load ends after few of them."""
    rates = []
    for c in found:
        hopeless = Probe(rate=2 * MULTI_SERVER, uses=(math.inf,) * 40, arrived=2 * MULTI_SERVER)
        rates.append(CapacitySearch(start=32).result([*c.probes, hopeless]).rate / c.rate)
    assert max(abs(math.log(ratio)) for ratio in rates) <= 0.02


def test_many_slots_with_fixed_service_are_found_too():
    errors, held = [], 0
    for seed in range(6):
        rng, search = np.random.default_rng(100 + seed), CapacitySearch(start=0.75 * MANY_SLOTS)
        probes = searched(
            search, lambda rate, rng=rng: queued(rng, rate, np.ones(1500), slots=MANY_SLOTS, limit_s=0.25)
        )
        c = search.result(probes)
        errors.append(c.rate / MANY_DETERMINISTIC - 1)
        held += c.low <= MANY_DETERMINISTIC <= c.high
    assert np.sqrt(np.mean(np.square(errors))) <= 0.035
    assert held >= 5


def steep(rate, capacity=10.0, n=400):
    """Uses that grow fast with the rate, and pass 1 for one request in a hundred at the capacity."""
    top = (rate / capacity) ** 8
    return Probe(
        rate=rate, uses=tuple(top * (0.5 + 0.5 * i / (0.99 * n)) for i in np.random.default_rng(1).permutation(n))
    )


@settings(max_examples=6)
@given(st.floats(0.5, 200))
def test_a_search_ends_whatever_its_start_and_stays_inside_its_budget(start):
    search = CapacitySearch(start=start)
    probes = searched(search, steep)
    assert 1 <= len(probes) <= 12
    found = search.result(probes)
    # also where a start far away has used the budget up; these uses are no queue's, so a little beside will do
    assert 0.97 * found.low <= 10 <= 1.03 * found.high
    if found.rate is not None:
        assert found.low <= found.rate <= found.high
    if 2 <= start <= 50:
        assert found.rate == pytest.approx(10, rel=0.2)


def test_a_level_that_always_holds_has_its_capacity_beyond():
    search = CapacitySearch(start=5, ceiling=12)
    probes = searched(search, lambda rate: Probe(rate=rate, uses=(0.1,) * 100))
    found = search.result(probes)
    assert max(p.rate for p in probes) == 12
    assert (found.rate, found.low, found.high) == (None, 12, math.inf)
    assert "the capacity is beyond" in found.reason


def test_a_level_that_never_holds_has_no_capacity():
    search = CapacitySearch(start=5, most=5)
    found = search.result(searched(search, lambda rate: Probe(rate=rate, uses=(math.inf,) * 100)))
    assert found.rate is None
    assert found.reason.startswith("at no rate down to 1.04 req/s 0.99 of the requests meet")


def test_nothing_probed_says_nothing():
    found = CapacitySearch(start=5).result([])
    assert found.rate is None
    assert not found.confirmed


def test_episodes_are_stretches_of_misses():
    uses = (0.0,) * 30 + (2.0, 0.5, 2.0) + (0.1,) * 40 + (3.0,) + (0.1,) * 10
    assert episodes(np.array(uses), 1.0) == [2, 1]
    assert episodes(np.array(uses), 5.0) == []
    assert Probe(rate=1, uses=uses).missed == pytest.approx(3 / len(Probe(rate=1, uses=uses).counted))


def test_failed_requests_miss_the_level():
    assert Probe(rate=1, uses=(0.5,) * 90 + (math.inf,) * 10).missed == pytest.approx(10 / 90)


def test_the_knee_has_most_throughput_for_its_latency():
    assert knee([(10, 1.0), (19, 1.1), (27, 1.4), (30, 4.0)]) == 2
    assert knee([]) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"start": 0}, "start=0 must be"),
        ({"target": 1.0}, "target=1.0 must be"),
        ({"most": 2}, "3 or more probes"),
        ({"clumping": 0.0}, "clumping=0.0 must be above 0"),
    ],
)
def test_wrong_settings_are_told(wrong, told):
    with pytest.raises(ConfigError, match=f"capacity search: .*{told}"):
        CapacitySearch(**{"start": 5.0, **wrong})
