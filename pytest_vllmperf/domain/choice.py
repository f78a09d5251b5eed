"""Which configuration for which use: rules of the user's, applied to what was measured.

A rule says what is wanted (the best value of one metric of one workload) and what must hold besides. The answer is the
engine with the best value among those that meet all of it; engines within the tolerance of the best are told with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_vllmperf.domain.metrics import Better, Metric, judgeable_metric
from pytest_vllmperf.domain.units import format_quantity

__all__ = ["DEFAULT_RULES", "Choice", "Measured", "Requirement", "Rule", "choose"]

Measured = Mapping[tuple[str, str], float]
"""Values of one engine by workload and metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What a metric must be; ``workload`` None takes the worst over all workloads that have it."""

    metric: str
    workload: str | None = None
    maximum: float | None = None
    minimum: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One use: the metric to optimise, of which workload, and what must hold.

    Args:
        use: What it is for, such as ``many users``.
        workload: Whose metric is optimised.
        best: The metric; its direction comes from the catalogue.
        tolerance: Ratio within which engines count as equally good; None takes the catalogue's.
        requires: What must hold besides.
        where: Its place in the file, for messages.
    """

    use: str
    workload: str
    best: str
    tolerance: float | None = None
    requires: tuple[Requirement, ...] = ()
    where: str = "built in"


DEFAULT_RULES: tuple[Rule, ...] = (
    Rule(use="single user, short context", workload="single-user", best="tpot_mean"),
    Rule(use="many users", workload="heavy", best="output_throughput"),
    Rule(use="long context", workload="long-context", best="output_throughput"),
    Rule(use="shared prefixes", workload="shared-prefix", best="ttft_mean"),
    Rule(use="lowest TTFT", workload="single-user", best="ttft_mean"),
)
"""What is answered where the file has no rules, as far as it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The answer to one rule.

    Args:
        rule: The question.
        engine: The best engine; None when none qualifies.
        value: Its value of ``rule.best``.
        equal: Other engines that qualify and are within the tolerance of it.
        left_out: Why each of the others does not qualify, by engine.
        sentence: The answer in words.
    """

    rule: Rule
    engine: str | None
    value: float | None
    equal: tuple[str, ...]
    left_out: Mapping[str, str]
    sentence: str


def choose(rule: Rule, engines: Mapping[str, Measured]) -> Choice:
    """Answer ``rule`` from what was measured of each engine.

    Raises:
        UnknownMetric: The rule names a metric that is not in the catalogue, or is a bare distribution.
    """
    entry = judgeable_metric(rule.best)
    left_out: dict[str, str] = {}
    fit: dict[str, float] = {}
    for name, values in engines.items():
        value = values.get((rule.workload, rule.best))
        misses = [why for r in rule.requires if (why := _missed(r, values)) is not None]
        if misses:
            left_out[name] = "; ".join(misses)
        elif value is None:
            left_out[name] = f"{entry.label} of {rule.workload} was not measured"
        else:
            fit[name] = value
    if not fit:
        return Choice(
            rule=rule, engine=None, value=None, equal=(), left_out=left_out, sentence=_none_fits(rule, left_out)
        )
    sign = -1 if entry.better is Better.HIGHER else 1
    best = min(fit, key=lambda name: sign * fit[name])
    slack = entry.tolerance if rule.tolerance is None else rule.tolerance
    equal = tuple(n for n, v in fit.items() if n != best and abs(v - fit[best]) <= slack * abs(fit[best]))
    return Choice(
        rule=rule,
        engine=best,
        value=fit[best],
        equal=equal,
        left_out=left_out,
        sentence=_told(rule, entry, best, fit[best], equal),
    )


def _missed(requirement: Requirement, values: Measured) -> str | None:
    """Why a requirement does not hold, or None. A value that was not measured meets nothing."""
    entry = judgeable_metric(requirement.metric)
    found = [
        value
        for (workload, metric), value in values.items()
        if metric == requirement.metric and requirement.workload in (None, workload)
    ]
    of = f" of {requirement.workload}" if requirement.workload else ""
    if not found:
        return f"{entry.label}{of} was not measured"
    for value in (max(found), min(found)):
        high = requirement.maximum is not None and value > requirement.maximum
        low = requirement.minimum is not None and value < requirement.minimum
        if high or low:
            return f"{entry.label}{of} {format_quantity(value, unit=entry.unit)} misses {requirement.text}"
    return None


def _none_fits(rule: Rule, left_out: Mapping[str, str]) -> str:
    reasons: Sequence[str] = [f"{name}: {why}" for name, why in left_out.items()]
    return f"{rule.use}: none ({'; '.join(reasons) or 'nothing was measured'})"


def _told(rule: Rule, entry: Metric, best: str, value: float, equal: Sequence[str]) -> str:
    others = f", as good: {', '.join(equal)}" if equal else ""
    return f"{rule.use}: {best} ({entry.label} {format_quantity(value, unit=entry.unit)}{others})"
