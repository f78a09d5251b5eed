"""Attribution: which of the settings in which two engines differ is behind the change of each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_vllmperf.domain.effects import Effects, Estimate, Observation, PairEffect, estimate_effects
from pytest_vllmperf.domain.factorial import Design
from pytest_vllmperf.domain.factors import Factor
from pytest_vllmperf.domain.metrics import Metric, judgeable_metric
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["Attribution", "Change", "FactorEffect", "Interaction", "MetricAttribution", "Run", "Wanted", "attribute"]

FALSE_CLAIM = 0.05
"""Probability that any setting without effect is claimed to have one, over all settings and metrics (Holm)."""

Status = Literal["effect", "no effect", "unclear", "not told"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A metric to attribute: of which workload (or ``startup``), and what change of it does not matter."""

    workload: str
    metric: str
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One launch of the plan; a value is None where there is none, or the measurement was broken."""

    round: int
    point: int
    values: Mapping[tuple[str, str], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change with its 95 % interval: a ratio − 1 where all values are above 0, else a difference in the unit."""

    value: float
    low: float
    high: float
    relative: bool
    unit: str

    @property
    def text(self) -> str:
        """``-27 % [-30, -24]``."""
        if self.relative:
            value, low, high = (_percent(x) for x in (self.value, self.low, self.high))
            return f"{value} % [{low}, {high}]"
        return f"{_signed(self.value, self.unit)} [{_signed(self.low, self.unit)}, {_signed(self.high, self.unit)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorEffect:
    """What one factor does to one metric.

    Args:
        factor: Its name.
        status: ``effect`` (beyond chance, with care for all that is claimed), ``no effect`` (shown to lie within the
            tolerance, both tests at 5 %), ``unclear``, or ``not told`` where the launches that would tell are missing.
        change: Its main effect; None where not told.
        at_base: Its effect on the base, where that was launched.
        at_candidate: Its effect on the candidate, likewise.
        adjusted_p: Of no effect, for everything claimed together.
    """

    factor: str
    status: Status
    change: Change | None
    at_base: Change | None
    at_candidate: Change | None
    adjusted_p: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """Two factors that do together what they do not do apart.

    ``change`` is what both have beyond the sum of each alone. ``aliases`` are pairs that this plan cannot tell from it.
    """

    factors: tuple[str, str]
    change: Change
    aliases: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """One clause."""
        others = " or ".join(" with ".join(pair) for pair in self.aliases)
        doubt = f" (or {others}: this plan cannot tell)" if others else ""
        return (
            f"{self.factors[0]} and {self.factors[1]} together{doubt} do {self.change.text} beyond what each does alone"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricAttribution:
    """Everything about one metric.

    Args:
        workload: What was asked.
        metric: Name in the catalogue.
        tolerance: What change does not matter, as a ratio.
        total: Candidate against base.
        total_matters: Whether ``total`` is beyond chance and not shown to lie within the tolerance.
        factors: In the order of the plan.
        interactions: Those that matter.
        remainder: What the settings and pairs leave unexplained, where that is beyond chance and the tolerance.
        noise: Standard deviation of equal launches (relative where the changes are).
        launches: That gave a value.
        sentence: The finding in words.
    """

    workload: str
    metric: str
    tolerance: float
    total: Change
    total_matters: bool
    factors: tuple[FactorEffect, ...]
    interactions: tuple[Interaction, ...]
    remainder: Change | None
    noise: float
    launches: int
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """What a plan of launches came to; ``missing`` says why metrics have no attribution, by workload and metric."""

    metrics: tuple[MetricAttribution, ...]
    missing: Mapping[tuple[str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The effects on one metric before anything is claimed about them."""

    wanted: Wanted
    entry: Metric
    relative: bool
    bound: float
    effects: Effects
    launches: int

    def change(self, estimate: Estimate) -> Change:
        value, low, high = estimate.value, estimate.low, estimate.high
        if self.relative:
            value, low, high = (math.expm1(min(x, 700.0)) for x in (value, low, high))
        return Change(value=value, low=low, high=high, relative=self.relative, unit=self.entry.unit)

    def negligible(self, estimate: Estimate) -> bool:
        return -self.bound <= estimate.inner_low and estimate.inner_high <= self.bound


def attribute(design: Design, factors: Sequence[Factor], runs: Sequence[Run], wanted: Sequence[Wanted]) -> Attribution:
    """Estimate the effect of every factor on every metric, and say what can be claimed.

    Raises:
        UnknownMetric: A wanted metric is not in the catalogue, or is a bare distribution.
    """
    found: list[_Found] = []
    missing: dict[tuple[str, str], str] = {}
    for one in wanted:
        result = _effects(design, runs, one)
        if isinstance(result, str):
            missing[one.workload, one.metric] = result
        else:
            found.append(result)
    p_values = [m.p_value for f in found for m in f.effects.main if m is not None]
    adjusted = iter(_holm(p_values))
    metrics = []
    for one_found in found:
        claims = [None if m is None else next(adjusted) for m in one_found.effects.main]
        metrics.append(_described(one_found, [f.name for f in factors], claims))
    return Attribution(metrics=tuple(metrics), missing=missing)


def _effects(design: Design, runs: Sequence[Run], wanted: Wanted) -> _Found | str:
    """The effects, or why there are none."""
    entry = judgeable_metric(wanted.metric)
    key = (wanted.workload, wanted.metric)
    known = [(run, value) for run in runs if (value := run.values.get(key)) is not None and math.isfinite(value)]
    if not known:
        return "no launch gave a value"
    relative = all(value > 0 for _, value in known)
    scale = math.log if relative else float
    effects = estimate_effects(
        design, [Observation(round=run.round, point=run.point, value=scale(value)) for run, value in known]
    )
    if effects is None:
        return "base and candidate need a value each, and one engine must have been launched twice"
    size = 1.0 if entry.unit == "ratio" else max(abs(value) for _, value in known)
    bound = math.log1p(wanted.tolerance) if relative else wanted.tolerance * size
    return _Found(wanted=wanted, entry=entry, relative=relative, bound=bound, effects=effects, launches=len(known))


def _holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values after Holm (1979): valid whatever depends on what."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def _described(found: _Found, names: Sequence[str], adjusted: Sequence[float | None]) -> MetricAttribution:
    effects = found.effects
    factors = tuple(
        _factor_effect(found, name, place, p) for place, (name, p) in enumerate(zip(names, adjusted, strict=True))
    )
    interactions = tuple(
        _interaction(found, names, pair) for pair in effects.interactions if not found.negligible(pair.estimate)
    )
    rest = effects.remainder
    unexplained = rest is not None and rest.p_value <= FALSE_CLAIM and not found.negligible(rest)
    total = found.change(effects.total)
    matters = effects.total.p_value <= FALSE_CLAIM and not found.negligible(effects.total)
    remainder = found.change(rest) if rest is not None and unexplained else None
    return MetricAttribution(
        workload=found.wanted.workload,
        metric=found.wanted.metric,
        tolerance=found.wanted.tolerance,
        total=total,
        total_matters=matters,
        factors=factors,
        interactions=interactions,
        remainder=remainder,
        noise=effects.sd,
        launches=found.launches,
        sentence=_sentence(found, total, matters, factors, interactions, remainder),
    )


def _factor_effect(found: _Found, name: str, place: int, adjusted_p: float | None) -> FactorEffect:
    estimate, ends = found.effects.main[place], found.effects.at_ends[place]
    changes = [found.change(end) for end in ends]
    if estimate is None or adjusted_p is None:
        status: Status = "not told"
    elif found.negligible(estimate):
        status = "no effect"
    else:
        status = "effect" if adjusted_p <= FALSE_CLAIM else "unclear"
    return FactorEffect(
        factor=name,
        status=status,
        change=None if estimate is None else found.change(estimate),
        at_base=changes[0] if len(changes) == 2 else None,
        at_candidate=changes[-1] if len(changes) == 2 else None,
        adjusted_p=adjusted_p,
    )


def _interaction(found: _Found, names: Sequence[str], pair: PairEffect) -> Interaction:
    return Interaction(
        factors=(names[pair.pair[0]], names[pair.pair[1]]),
        change=found.change(pair.estimate),
        aliases=tuple((names[a], names[b]) for a, b in pair.aliases),
    )


def _sentence(
    found: _Found,
    total: Change,
    matters: bool,
    factors: Sequence[FactorEffect],
    interactions: Sequence[Interaction],
    remainder: Change | None,
) -> str:
    """Such as ``KV offload explains -27 % [-30, -24] of the -29 % throughput; FP8 KV +1 % [-1, +3] (within 5 %)``."""
    whole = total.text.split(" [")[0]
    what = f"{found.entry.label} ({found.wanted.workload})"
    by_size = sorted(factors, key=lambda f: -abs(f.change.value) if f.change is not None else 0.0)
    tolerance = format_quantity(found.wanted.tolerance, unit="ratio")
    claimed = [f"{f.factor} {{}}{f.change.text}" for f in by_size if f.status == "effect" and f.change is not None]
    if claimed:
        first, *others = claimed
        parts = [" and ".join((first.format("explains "), *(o.format("") for o in others))) + f" of the {whole} {what}"]
    else:
        tell = "and no single setting stands out" if matters else f"no change beyond the tolerance of {tolerance} shown"
        parts = [f"{what} {total.text}: {tell}"]
    words = {"no effect": f"within {tolerance}", "unclear": "unclear"}
    parts += [f"{f.factor} {f.change.text} ({words[f.status]})" for f in by_size if f.status in words and f.change]
    parts += [f"{f.factor} not told: it could not be launched without the others" for f in factors if not f.change]
    parts += [interaction.text for interaction in interactions]
    if remainder is not None:
        parts.append(f"{remainder.text} come from three or more settings at once")
    return "; ".join(parts)


def _percent(ratio: float) -> str:
    """Whole percents from ten on, tenths below."""
    text = f"{100 * ratio:+.{0 if abs(ratio) >= 0.0995 else 1}f}".removesuffix(".0")
    return "0" if text in ("+0", "-0") else text


def _signed(value: float, unit: str) -> str:
    text = format_quantity(abs(value), unit=unit, digits=2)
    return text if not value else ("+" if value > 0 else "-") + text
