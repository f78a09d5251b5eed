"""What other tools would have said on the same noise: the rules most often used, reduced to their statistic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import mannwhitneyu
from verdict_noise import Noise, request_logs

HISTORY_RUNS = 10
STORED = Noise()
"""History is stored in the environment of before, without whatever disturbs the job under test."""


def fixed_five_percent(rng: np.random.Generator, noise: Noise, effect: float, count: int) -> float:
    """pytest-benchmark's ``--benchmark-compare-fail=mean:5%``: one run against the last stored one."""
    fails = 0
    for _ in range(count):
        last, new = STORED.job(rng, 1)[0], noise.job(rng, 1)[0] + np.log1p(effect)
        fails += np.exp(new - last) > 1.05
    return fails / count


def pooled_requests(rng: np.random.Generator, noise: Noise, effect: float, count: int, requests: int = 400) -> float:
    """Mann-Whitney (5 %, two-sided) of one run's requests against those of ten stored runs pooled."""
    fails = 0
    stored, current = (_without_requests(n) for n in (STORED, noise))
    for _ in range(count):
        levels = [stored.job(rng, 1)[0] for _ in range(HISTORY_RUNS)]
        pooled = request_logs(rng, levels, requests).ravel()
        new = request_logs(rng, [current.job(rng, 1)[0] + np.log1p(effect)], requests).ravel()
        fails += mannwhitneyu(new, pooled).pvalue < 0.05 and np.median(new) > np.median(pooled)
    return fails / count


def interleaved_benchstat(rng: np.random.Generator, noise: Noise, effect: float, count: int, each: int = 8) -> float:
    """benchstat's Mann-Whitney (5 %, two-sided) on launches of one job, baseline and candidate taking turns."""
    fails = 0
    for _ in range(count):
        levels = noise.job(rng, 2 * each)
        baseline, candidate = levels[0::2], levels[1::2] + np.log1p(effect)
        fails += mannwhitneyu(candidate, baseline).pvalue < 0.05 and np.median(candidate) > np.median(baseline)
    return fails / count


def _without_requests(noise: Noise) -> Noise:
    """The requests drawn make the noise within a launch themselves."""
    return replace(noise, within=0.0)
