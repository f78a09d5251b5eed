"""Whose device memory it is, and when GPUs make a measurement worthless."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.device import DeviceSample, DeviceUse, device_memory, device_use

GIB = 2**30
MS = 1_000_000


def samples(*changes: dict[str, Any]) -> list[DeviceSample]:
    return [
        DeviceSample(**{"at_ns": i * 50 * MS, "used_bytes": 40 * GIB, **change}) for i, change in enumerate(changes)
    ]


def judged(*changes: dict[str, Any], **given: Any) -> DeviceUse:
    return device_use(samples(*changes), **{"baseline_bytes": GIB, "output_tokens": 100, **given})


def test_where_processes_are_known_the_engines_share_is_told_from_that_of_others() -> None:
    found = device_memory(
        samples({"own_bytes": 35 * GIB}, {"used_bytes": 42 * GIB}, {"own_bytes": 35 * GIB}), baseline_bytes=None
    )
    assert (found.peak_bytes, found.steady_bytes, found.source) == (37 * GIB, 35 * GIB, "processes")
    assert found.foreign_growth_bytes == 0


def test_where_they_are_hidden_it_is_what_came_since_the_launch() -> None:
    """V02: exactly used - baseline, and labelled."""
    found = device_memory(samples({}, {"used_bytes": 43 * GIB}, {}), baseline_bytes=3 * GIB)
    assert (found.peak_bytes, found.steady_bytes, found.source) == (40 * GIB, 37 * GIB, "device delta")


@pytest.mark.parametrize(
    ("changes", "baseline", "unavailable", "why"),
    [
        ([], None, None, "the driver did not tell"),
        ([{"used_bytes": None}], 1, "NVML Shared Library Not Found", "NVML Shared Library Not Found"),
        ([{}], None, None, "the driver hides whose memory it is, and what was in use before the start is not known"),
    ],
)
def test_what_nobody_tells_is_unknown(changes: Any, baseline: Any, unavailable: Any, why: str) -> None:
    """V01: a limit on it can then not be met."""
    found = device_memory(samples(*changes), baseline_bytes=baseline, unavailable=unavailable)
    assert (found.peak_bytes, found.steady_bytes, found.source, found.missing) == (None, None, None, why)


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 100), st.booleans()).map(lambda t: (max(t[0], t[1]), t[1], t[2])),
        min_size=1,
    )
)
def test_the_engine_never_has_more_than_is_in_use_nor_less_than_nothing(seen: list[tuple[int, int, bool]]) -> None:
    changes = [{"used_bytes": used, "own_bytes": own if full else None} for used, own, full in seen]
    found = device_memory(samples(*changes), baseline_bytes=0)
    assert found.peak_bytes is not None
    assert found.steady_bytes is not None
    assert 0 <= found.steady_bytes <= found.peak_bytes <= max(used for used, _, _ in seen)


def test_another_process_that_moves_in_makes_the_run_invalid_and_is_not_counted() -> None:
    """V03."""
    found = judged({"own_bytes": 35 * GIB}, {}, {"used_bytes": 42 * GIB, "own_bytes": 35 * GIB})
    (reason,) = found.invalid
    assert reason.startswith("another process took 2 GiB on the engine's GPUs during the measurement: keep it away")
    assert found.values["device_memory_peak"] == 35 * GIB


def test_growth_whose_owner_is_hidden_is_told() -> None:
    found = judged({}, {"used_bytes": 42 * GIB})
    assert found.invalid == ()
    assert found.warnings[0].startswith("device memory in use grew by 2 GiB during the measurement")


@pytest.mark.parametrize(
    ("reason", "share", "invalid"),
    [
        ("HW thermal slowdown", 0.05, True),
        ("HW power brake", 0.02, True),
        ("SW thermal slowdown", 0.005, False),
        ("SW power cap", 0.5, False),
    ],
)
def test_a_throttled_gpu_makes_the_run_invalid_and_a_capped_one_is_told(
    reason: str, share: float, invalid: bool
) -> None:
    """V06. Full load runs at the power limit: no reason for doubt, and a fact all the same."""
    count = round(200 * share)
    found = judged(*({"throttled": (reason,) if i < count else ()} for i in range(200)))
    assert (bool(found.invalid), found.throttled, found.warnings) == (invalid, invalid, ())
    assert found.facts["clocks_held_back"] == {reason: share}
    if invalid:
        assert found.invalid[0].startswith(f"the GPU was throttled in {count} of 200 samples ({reason})")


def test_energy_is_the_drivers_counter_and_else_power_times_time() -> None:
    counted = judged({"energy_j": 1000.0, "power_w": 300.0}, {"energy_j": 1040.0, "power_w": 500.0})
    assert counted.values["energy_per_output_token"] == pytest.approx(0.4)
    assert counted.values["power_mean"] == 400.0
    estimated = judged({"power_w": 300.0}, {"power_w": 500.0})
    assert estimated.values["energy_per_output_token"] == pytest.approx(400.0 * 0.05 / 100)
    assert judged({"power_w": 3.0}, {}, output_tokens=None).missing["energy_per_output_token"].startswith("no output")
    assert judged({}, {}).values["energy_per_output_token"] is None


def test_a_gap_in_the_samples_is_told() -> None:
    """V07."""
    found = device_use(
        [DeviceSample(at_ns=0, used_bytes=1), DeviceSample(at_ns=10_000 * MS, used_bytes=1)],
        baseline_bytes=0,
        output_tokens=1,
    )
    assert found.warnings == ("the driver did not answer for 10.0 s: peaks of that time are not known",)
