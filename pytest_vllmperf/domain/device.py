"""What GPUs did during a measurement: memory and whose it is, power, clocks, and whether the result may be believed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pytest_vllmperf.domain.units import format_quantity

__all__ = [
    "FOREIGN_GROWTH_BYTES",
    "DeviceMemory",
    "DeviceSample",
    "DeviceUse",
    "device_memory",
    "device_use",
    "is_hot",
]

_NS = 1e-9
_GIB = 2**30
FOREIGN_GROWTH_BYTES = 256 * 2**20
"""Growth of other processes' memory on the engine's GPUs above which a measurement says nothing about the engine."""
_SHARE_THROTTLED = 0.01
_GAP_S = 1.0
_THERMAL = ("HW thermal slowdown", "SW thermal slowdown", "HW power brake", "HW slowdown")
"""The GPU was slower than it is: too hot, or too little power from its supply."""

Attribution = Literal["processes", "device delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """An engine's GPUs at one moment, summed over them; None is what the driver did not tell.

    Args:
        at_ns: When (monotonic).
        used_bytes: Memory in use, by whatever process.
        own_bytes: Memory of the engine's own processes; taken less often than ``used_bytes``, and None in between.
        power_w: Power drawn.
        energy_j: Energy drawn since the driver was loaded.
        sm_clock_ratio: Clock of the multiprocessors / the highest it can have, of the slowest GPU.
        temperature_c: Of the hottest GPU.
        throttled: Why clocks are held back, such as ``SW power cap``; None where it was not looked at.
    """

    at_ns: int
    used_bytes: int | None = None
    own_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    sm_clock_ratio: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The engine's own device memory: the largest, the usual (median), and how it was told from that of others.

    ``source`` is ``processes`` where the driver tells each process's share, ``device delta`` where it hides it (in
    containers, under WSL): then it is what is in use less what was in use before the engine started. All are None
    where neither is known, and ``missing`` says why.
    """

    peak_bytes: int | None
    steady_bytes: int | None
    source: Attribution | None
    foreign_growth_bytes: int | None
    missing: str | None


def device_memory(
    samples: Sequence[DeviceSample], *, baseline_bytes: int | None, unavailable: str | None = None
) -> DeviceMemory:
    """Attribute what is in use to the engine.

    Between two samples that tell each process's share, all change is taken for the engine's; growth of what others
    hold is found at those samples, and given apart.
    """
    used = [s for s in samples if s.used_bytes is not None]
    if not used:
        return _unknown(unavailable or "the driver did not tell")
    others = [s.used_bytes - s.own_bytes for s in used if s.used_bytes is not None and s.own_bytes]
    if others:
        own, foreign = [], others[0]
        for sample in used:
            assert sample.used_bytes is not None
            foreign = sample.used_bytes - sample.own_bytes if sample.own_bytes else foreign
            own.append(max(0, sample.used_bytes - foreign))
        return _memory(own, "processes", foreign_growth=max(others) - others[0])
    if baseline_bytes is None:
        return _unknown("the driver hides whose memory it is, and what was in use before the start is not known")
    return _memory([max(0, (s.used_bytes or 0) - baseline_bytes) for s in used], "device delta", foreign_growth=None)


def _unknown(why: str) -> DeviceMemory:
    return DeviceMemory(peak_bytes=None, steady_bytes=None, source=None, foreign_growth_bytes=None, missing=why)


def _memory(own: Sequence[int], source: Attribution, *, foreign_growth: int | None) -> DeviceMemory:
    return DeviceMemory(
        peak_bytes=max(own),
        steady_bytes=int(statistics.median(own)),
        source=source,
        foreign_growth_bytes=foreign_growth,
        missing=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """All of it for one measurement: values of metrics with the reasons of those missing, and doubts."""

    values: dict[str, float | None]
    missing: dict[str, str]
    invalid: tuple[str, ...]
    warnings: tuple[str, ...]
    facts: dict[str, object]

    @property
    def throttled(self) -> bool:
        """Whether the GPU was too hot, which passes."""
        return any(reason.startswith(_THROTTLED) for reason in self.invalid)


_THROTTLED = "the GPU was throttled"


def device_use(
    samples: Sequence[DeviceSample],
    *,
    baseline_bytes: int | None,
    output_tokens: int | None,
    unavailable: str | None = None,
) -> DeviceUse:
    """Judge what was sampled on an engine's GPUs.

    Args:
        samples: In the order of time; the first and the last stand at the ends of the load.
        baseline_bytes: Memory in use on them before the engine was launched.
        output_tokens: Tokens the engine made meanwhile.
        unavailable: Why the driver tells nothing, where it does not.
    """
    memory = device_memory(samples, baseline_bytes=baseline_bytes, unavailable=unavailable)
    power = [s.power_w for s in samples if s.power_w is not None]
    clocks = [s.sm_clock_ratio for s in samples if s.sm_clock_ratio is not None]
    mean_power = statistics.fmean(power) if power else None
    energy = _energy_j(samples, mean_power)
    values: dict[str, float | None] = {
        "device_memory_peak": None if memory.peak_bytes is None else float(memory.peak_bytes),
        "device_memory_steady": None if memory.steady_bytes is None else float(memory.steady_bytes),
        "power_mean": mean_power,
        "energy_per_output_token": energy / output_tokens if energy is not None and output_tokens else None,
        "sm_clock_ratio": statistics.fmean(clocks) if clocks else None,
    }
    silent = unavailable or "the driver did not tell"
    missing = {
        "device_memory_peak": memory.missing or silent,
        "device_memory_steady": memory.missing or silent,
        "power_mean": silent,
        "energy_per_output_token": silent if energy is None else "no output tokens were counted",
        "sm_clock_ratio": silent,
    }
    temperatures = [s.temperature_c for s in samples if s.temperature_c is not None]
    facts: dict[str, object] = {"device_memory_source": memory.source or "unknown", "device_samples": len(samples)}
    if temperatures:
        facts["temperature_peak_c"] = max(temperatures)
    invalid, shares = _throttling(samples)
    if shares:
        facts["clocks_held_back"] = shares
    contaminated, doubts = _neighbours(samples, memory)
    return DeviceUse(
        values=values,
        missing=missing,
        invalid=(*invalid, *contaminated),
        warnings=(*doubts, *_gaps(samples)),
        facts=facts,
    )


def _energy_j(samples: Sequence[DeviceSample], mean_power: float | None) -> float | None:
    """The driver's own counter; where it has none, mean power times the time between the first and last sample."""
    counted = [s.energy_j for s in samples if s.energy_j is not None]
    if len(counted) > 1 and counted[-1] > counted[0]:
        return counted[-1] - counted[0]
    if mean_power is None or len(samples) < 2:
        return None
    return mean_power * (samples[-1].at_ns - samples[0].at_ns) * _NS


def is_hot(sample: DeviceSample) -> bool:
    """Whether a GPU is held back by heat or by its power supply at this moment."""
    return any(reason in _THERMAL for reason in sample.throttled or ())


def _throttling(samples: Sequence[DeviceSample]) -> tuple[tuple[str, ...], dict[str, float]]:
    """What makes the measurement invalid, and the share of samples that each reason held clocks back in.

    The power limit alone is no doubt: a GPU at full load runs at it.
    """
    looked = [s.throttled for s in samples if s.throttled is not None]
    if not looked:
        return (), {}
    times = Counter(reason for reasons in looked for reason in reasons)
    shares = {reason: round(times[reason] / len(looked), 4) for reason in sorted(times)}
    hot = sum(any(reason in _THERMAL for reason in reasons) for reasons in looked)
    if hot <= _SHARE_THROTTLED * len(looked):
        return (), shares
    named = ", ".join(reason for reason in shares if reason in _THERMAL)
    return _one(
        f"{_THROTTLED} in {hot} of {len(looked)} samples ({named}): its figures are those of a hot machine; "
        "cool it, or look for what else heats it"
    ), shares


def _neighbours(samples: Sequence[DeviceSample], memory: DeviceMemory) -> tuple[tuple[str, ...], tuple[str, ...]]:
    grown = memory.foreign_growth_bytes
    if grown is not None and grown > FOREIGN_GROWTH_BYTES:
        return _one(
            f"another process took {format_quantity(grown, unit='B')} on the engine's GPUs during the measurement: "
            "keep it away (nvidia-smi shows who it is) and measure again"
        ), ()
    used = [s.used_bytes for s in samples if s.used_bytes is not None]
    if memory.source == "device delta" and used and max(used) - used[0] > _GIB:
        return (), _one(
            f"device memory in use grew by {format_quantity(max(used) - used[0], unit='B')} during the measurement, "
            "and the driver does not tell whose it is"
        )
    return (), ()


def _one(text: str) -> tuple[str, ...]:
    return (text,)


def _gaps(samples: Sequence[DeviceSample]) -> tuple[str, ...]:
    times = [s.at_ns for s in samples]
    longest = max((b - a for a, b in pairwise(times)), default=0) * _NS
    if longest <= _GAP_S:
        return ()
    return (f"the driver did not answer for {longest:.1f} s: peaks of that time are not known",)
