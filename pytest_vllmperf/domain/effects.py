"""Effects of factors on one number, from launches in a design of experiments blocked by round.

The model has a level for every point and every round, so that an effect is unbiased whatever interacts with what,
and the noise is the spread of equal launches only. A factor's *main effect* is its average effect at the base and at
the candidate (over all combinations, in a fractional factorial). As long as only pairs interact the two definitions
agree and the main effects add up to the whole change: it is the Shapley value of the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from pytest_vllmperf.domain.factorial import Design, end_contrasts, main_contrasts

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CONFIDENCE", "Effects", "Estimate", "Observation", "PairEffect", "estimate_effects"]

CONFIDENCE = 0.95
"""Of each interval alone."""
_ALPHA = 0.05
"""Probability of naming any interaction where there is none, over all pairs of one number."""
_MOST_INTERACTIONS = 3
_SAME_FIT = 1e-6
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one launch gave: ``point`` is its place in the design, ``value`` the number (a logarithm, mostly)."""

    round: int
    point: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval.

    ``low`` and ``high`` are bounds of :data:`CONFIDENCE`, ``inner_low`` and ``inner_high`` those of two one-sided tests
    at 5 %, which decide whether it lies within a tolerance. ``p_value``: of no effect, two-sided.
    """

    value: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairEffect:
    """Two factors that do together what they do not do apart.

    ``estimate`` is what both on have beyond the sum of each alone, at whatever the others are. ``aliases`` are
    pairs that this design cannot tell from this one; ``adjusted_p`` is for all pairs looked at.
    """

    pair: tuple[int, int]
    estimate: Estimate
    adjusted_p: float
    aliases: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """Everything about one number.

    Args:
        total: Candidate − base.
        main: Each factor's main effect; None where the launches do not tell it.
        at_ends: Each factor's effect at the base and at the candidate; empty in a fractional factorial, one only
            where the other end could not be launched.
        interactions: The pairs that matter, the clearest first.
        remainder: What ``total`` has beyond the sum of ``main``: more than two factors at once. None where a
            main effect is missing.
        sd: Standard deviation of equal launches, rounds taken out.
        df: Degrees of freedom of ``sd``.
    """

    total: Estimate
    main: tuple[Estimate | None, ...]
    at_ends: tuple[tuple[Estimate, ...], ...]
    interactions: tuple[PairEffect, ...]
    remainder: Estimate | None
    sd: float
    df: int


def estimate_effects(design: Design, observations: Sequence[Observation]) -> Effects | None:
    """Estimate all effects; None when base or candidate is missing, or nothing was launched twice."""
    fit = _Fit.of(design, observations)
    if fit is None or not (fit.available[0] and fit.available[-1]):
        return None
    import numpy as np

    ends = np.zeros(len(design.points))
    ends[-1], ends[0] = 1, -1
    contrasts = main_contrasts(design, fit.available)
    if design.kind == "fractional factorial" and not all(fit.available):
        contrasts = fit.main_without_interactions(design)
    known = [c for c in contrasts if c is not None]
    return Effects(
        total=fit.estimate(ends),
        main=tuple(None if c is None else fit.estimate(c) for c in contrasts),
        at_ends=tuple(
            tuple(fit.estimate(c) for c in end_contrasts(design, i) if fit.tells(c)) for i in range(design.factors)
        ),
        interactions=_interactions(design, fit),
        remainder=fit.estimate(ends - np.sum(known, axis=0)) if len(known) == len(contrasts) else None,
        sd=fit.sd,
        df=fit.df,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """The launches (their points, rounds and values), and the levels of the points they give.

    The levels of absent points are 0 and unused; ``covariance`` is that of the levels over ``sd`` squared.
    """

    points: np.ndarray
    blocks: np.ndarray
    values: np.ndarray
    available: tuple[bool, ...]
    levels: np.ndarray
    covariance: np.ndarray
    sd: float
    df: int

    @classmethod
    def of(cls, design: Design, observations: Sequence[Observation]) -> _Fit | None:
        import numpy as np

        if not observations:
            return None
        places = np.array([launch.point for launch in observations])
        y = np.array([launch.value for launch in observations])
        rounds, block = np.unique([launch.round for launch in observations], return_inverse=True)
        blocks = np.eye(len(rounds))[block]
        points = len(design.points)
        x = np.column_stack([np.eye(points)[places], blocks[:, 1:]])
        df = len(observations) - int(np.linalg.matrix_rank(x))
        if df < 1:
            return None
        inverse = np.linalg.pinv(x.T @ x)
        solution = inverse @ x.T @ y
        sd = float(np.sqrt(np.sum((y - x @ solution) ** 2) / df))
        if sd <= _ROUNDING * max(1.0, float(np.max(np.abs(y)))):
            sd = 0.0  # equal launches are equal but for rounding
        return cls(
            points=places,
            blocks=blocks,
            values=y,
            available=tuple(bool(x[:, point].any()) for point in range(points)),
            levels=solution[:points],
            covariance=inverse[:points, :points],
            sd=sd,
            df=df,
        )

    def tells(self, weights: np.ndarray) -> bool:
        """Whether every point that ``weights`` uses was measured."""
        return all(here or not weight for here, weight in zip(self.available, weights, strict=True))

    def estimate(self, weights: np.ndarray) -> Estimate:
        import numpy as np

        error = self.sd * float(np.sqrt(max(0.0, weights @ self.covariance @ weights)))
        return _estimate(float(weights @ self.levels), error, self.df)

    def added(self, model: Sequence[np.ndarray], column: np.ndarray) -> Estimate | None:
        """The coefficient of ``column`` in ``model`` with it; None where the model explains it already."""
        rest = _rest(model, column)
        size = float(rest @ rest)
        return None if size < _ROUNDING else _estimate(float(rest @ self.values) / size, self.sd / size**0.5, self.df)

    def main_without_interactions(self, design: Design) -> list[np.ndarray | None]:
        """Weights of main effects by least squares over the points there are, as if nothing interacted."""
        import numpy as np

        here = np.array(self.available)
        x = np.column_stack([np.ones(len(design.points)), np.array(design.points) - 0.5])[here]
        if np.linalg.matrix_rank(x) < x.shape[1]:
            return [None] * design.factors
        weights = np.zeros((x.shape[1], len(design.points)))
        weights[:, here] = np.linalg.pinv(x)
        return list(weights[1:])


def _estimate(value: float, error: float, df: int) -> Estimate:
    from scipy.stats import t

    if error == 0:
        value = 0.0 if abs(value) < _ROUNDING else value
        return Estimate(
            value=value, low=value, high=value, inner_low=value, inner_high=value, p_value=float(value == 0)
        )
    outer, inner = (float(t.ppf(q, df)) * error for q in ((1 + CONFIDENCE) / 2, 0.95))
    return Estimate(
        value=value,
        low=value - outer,
        high=value + outer,
        inner_low=value - inner,
        inner_high=value + inner,
        p_value=float(2 * t.sf(abs(value) / error, df)),
    )


def _interactions(design: Design, fit: _Fit) -> tuple[PairEffect, ...]:
    """Forward selection over all pairs, with the spread of equal launches as noise and Bonferroni's care."""
    import numpy as np

    points = np.array(design.points)[fit.points] - 0.5
    columns = {pair: points[:, pair[0]] * points[:, pair[1]] for pair in combinations(range(design.factors), 2)}
    looked_at = len(columns)
    model = [*fit.blocks.T, *points.T]
    alone = [
        abs(_clarity(fit, [*fit.blocks.T, *np.delete(points.T, i, axis=0)], points[:, i]))
        for i in range(design.factors)
    ]
    chosen: list[PairEffect] = []
    while columns and len(chosen) < _MOST_INTERACTIONS:
        clarity = {pair: abs(_clarity(fit, model, column)) for pair, column in columns.items()}
        best = max(clarity, key=lambda pair: clarity[pair])
        estimate = fit.added(model, columns[best])
        adjusted = 1.0 if estimate is None else min(1.0, estimate.p_value * looked_at)
        if estimate is None or adjusted > _ALPHA:
            break
        same = [pair for pair in columns if clarity[pair] >= clarity[best] * (1 - _SAME_FIT)]
        named, *aliases = sorted(same, key=lambda pair: -alone[pair[0]] - alone[pair[1]])
        estimate = fit.added(model, columns[named])
        assert estimate is not None  # it fits as well as the best one
        chosen.append(PairEffect(pair=named, estimate=estimate, adjusted_p=adjusted, aliases=tuple(aliases)))
        model.append(columns[named])
        columns = {pair: column for pair, column in columns.items() if pair not in same}
    return tuple(chosen)


def _clarity(fit: _Fit, model: Sequence[np.ndarray], column: np.ndarray) -> float:
    """How much of the launches ``column`` explains beyond ``model``: its t statistic times the noise."""
    rest = _rest(model, column)
    size = float(rest @ rest)
    return 0.0 if size < _ROUNDING else float(rest @ fit.values) / size**0.5


def _rest(model: Sequence[np.ndarray], column: np.ndarray) -> np.ndarray:
    """``column`` without what ``model`` explains of it."""
    import numpy as np

    x = np.column_stack(model)
    rest: np.ndarray = column - x @ np.linalg.lstsq(x, column, rcond=None)[0]
    return rest
