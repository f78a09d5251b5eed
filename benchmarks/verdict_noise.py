"""Noise models of the verdict simulation: levels of launches, latencies of requests, and whole gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.signal import lfilter

from pytest_vllmperf.domain.metrics import Better
from pytest_vllmperf.domain.paired import PAIR_LOOKS, PairedVerdict, abba_order, confirm, judge_pairs
from pytest_vllmperf.domain.thresholds import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Standard deviations of log level, and what else disturbs a job of several launches.

    Args:
        session: Shared by all launches of one job.
        launch: Of each launch.
        within: Of a launch's mean, from its own requests.
        shift: Added to all launches of a job (another environment than when history was stored).
        step: Added from a random launch of the job on.
        lemon_share: Share of launches that are slow by ``lemon_size``.
        drift: Total of a drift that saturates over the first launches, 1 - exp(-k / 6).
    """

    session: float = 0.020
    launch: float = 0.012
    within: float = 0.0142
    shift: float = 0.0
    step: float = 0.0
    lemon_share: float = 0.0
    lemon_size: float = 0.10
    drift: float = 0.0

    def job(self, rng: np.random.Generator, launches: int, *, session: bool = True) -> np.ndarray:
        """Log levels of the launches of one job, in order of time."""
        own = rng.normal(0, np.hypot(self.launch, self.within), launches)
        common = self.shift + (rng.normal(0, self.session) if session else 0.0)
        place = np.arange(launches)
        step = self.step * (place >= rng.integers(0, launches))
        lemons = self.lemon_size * (rng.random(launches) < self.lemon_share)
        return own + common + step + lemons + self.drift * (1 - np.exp(-place / 6))


BASE = Noise()


@dataclass(slots=True)
class Gates:
    """What a number of relative gates came to."""

    verdicts: list[PairedVerdict] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)

    def share(self, outcome: Outcome) -> float:
        return sum(v.outcome is outcome for v in self.verdicts) / len(self.verdicts)

    @property
    def mean_launches(self) -> float:
        return float(np.mean(self.launches))


def run_gate(
    rng: np.random.Generator, noise: Noise, effect: float, tolerance: float, pairs: int = PAIR_LOOKS.budget
) -> PairedVerdict:
    """One job: launch in ABBA order, judge at every look, stop at PASS, FAIL or the budget."""
    order = abba_order(pairs, int(rng.integers(2**32)))
    levels = np.exp(noise.job(rng, 2 * pairs)).reshape(pairs, 2)
    baseline = [levels[i, pair.index("baseline")] for i, pair in enumerate(order)]
    candidate = [levels[i, pair.index("candidate")] * (1 + effect) for i, pair in enumerate(order)]
    looks = PAIR_LOOKS.within(pairs)
    n: int | None = looks.at[0]
    while n is not None:
        verdict = judge_pairs(baseline[:n], candidate[:n], better=Better.LOWER, tolerance=tolerance, looks=looks)
        n = verdict.next_look
    return verdict


def run_gates(
    rng: np.random.Generator, noise: Noise, count: int, *, effect: float = 0.0, tolerance: float = 0.05
) -> Gates:
    """``count`` independent gates."""
    gates = Gates()
    for _ in range(count):
        verdict = run_gate(rng, noise, effect, tolerance)
        gates.verdicts.append(verdict)
        gates.launches.append(2 * verdict.n)
    return gates


def confirmed(rng: np.random.Generator, noise: Noise, gates: Gates, *, effect: float, tolerance: float = 0.05) -> Gates:
    """The same gates with every FAIL repeated once in a fresh job."""
    after = Gates()
    for verdict, launches in zip(gates.verdicts, gates.launches, strict=True):
        if verdict.outcome is Outcome.FAIL:
            repeated = run_gate(rng, noise, effect, tolerance)
            after.verdicts.append(confirm(verdict, repeated))
            after.launches.append(launches + 2 * repeated.n)
        else:
            after.verdicts.append(verdict)
            after.launches.append(launches)
    return after


REQUEST_SPREAD, REQUEST_MEMORY = 0.15, 0.70
BURST_RATE, BURST_LENGTH, BURST_SIZE = 0.0017, 20, 0.30


def request_logs(rng: np.random.Generator, levels: Sequence[float] | np.ndarray, requests: int) -> np.ndarray:
    """Log latencies of ``requests`` requests for each launch level: AR(1) plus bursts of slow requests."""
    levels = np.asarray(levels, dtype=float)
    settle = 50
    shape = (*levels.shape, requests + settle)
    fresh = rng.normal(0, REQUEST_SPREAD * np.sqrt(1 - REQUEST_MEMORY**2), shape)
    smooth = lfilter([1.0], [1.0, -REQUEST_MEMORY], fresh, axis=-1)
    begins = (rng.random(shape) < BURST_RATE).astype(float)
    bursts = lfilter(np.ones(BURST_LENGTH), [1.0], begins, axis=-1) > 0.5
    return levels[..., None] + (smooth + BURST_SIZE * bursts)[..., settle:]


@dataclass(frozen=True)
class Night:
    """How one night's value comes about: raw, or as mean log ratio of ABBA pairs to a control engine."""

    name: str
    pairs: int = 0
    spike_share: float = 0.0
    spike: float = 0.15

    def series(self, rng: np.random.Generator, nights: int, step_at: int | None, size: float) -> np.ndarray:
        """Values of consecutive nights, with a step of ``size`` from night ``step_at`` on."""
        own = np.hypot(BASE.launch, BASE.within)
        if self.pairs:
            logs = rng.normal(0, own * np.sqrt(2 / self.pairs), nights)
        else:
            logs = rng.normal(0, np.hypot(own, BASE.session), nights)
        logs += self.spike * (rng.random(nights) < self.spike_share)
        if step_at is not None:
            logs[step_at:] += np.log1p(size)
        return np.exp(logs)


NIGHTS = (Night("raw"), Night("raw, 3 % spike nights", spike_share=0.03), Night("control, 2 ABBA pairs", pairs=2))
