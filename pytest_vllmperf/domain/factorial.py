"""Designs of experiments on two levels: which combinations of factors to launch.

A point is a tuple of booleans, one for each factor: off as in the base, on as in the candidate. Every design
begins with the base and ends with the candidate.

Up to five factors: one factor at a time from both ends. The average of a factor's effect at the base and at the
candidate is its main effect, and their difference is the sum of its two-factor interactions.

Above: a Hadamard matrix and its mirror image (fold-over), of resolution IV: main effects are clear of each other and
of all two-factor interactions (Box and Wilson 1951; Montgomery, Design and Analysis of Experiments, ch. 8). With 8 or
16 rows it is the regular fraction 2^(k-p); with 12, 20 and 24 a folded Plackett-Burman design, built after Paley.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_vllmperf.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "MOST_FACTORS",
    "MOST_ONE_AT_A_TIME",
    "Design",
    "Point",
    "design_for",
    "end_contrasts",
    "launch_order",
    "main_contrasts",
]

Point = tuple[bool, ...]

MOST_ONE_AT_A_TIME = 5
"""With more factors a fractional factorial needs fewer launches for the same precision."""
MOST_FACTORS = 24

_PALEY = {12: 11, 20: 19, 24: 23}
"""Orders of Hadamard matrices that are no power of two, and the prime (3 modulo 4) that builds each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Points to launch.

    Args:
        kind: How they were chosen.
        factors: How many factors.
        points: The base first, the candidate last, none twice.
    """

    kind: Literal["one factor at a time", "fractional factorial"]
    factors: int
    points: tuple[Point, ...]


def design_for(factors: int) -> Design:
    """The design for a number of factors.

    Raises:
        ConfigError: None, or more than :data:`MOST_FACTORS`.
    """
    if not 1 <= factors <= MOST_FACTORS:
        raise ConfigError(
            f"{factors} factors cannot be told apart: from 1 to {MOST_FACTORS} can; declare flags that belong together "
            "as EngineConfig(together=…), or choose engines that are closer"
        )
    if factors <= MOST_ONE_AT_A_TIME:
        return Design(kind="one factor at a time", factors=factors, points=_from_both_ends(factors))
    return Design(kind="fractional factorial", factors=factors, points=_folded(factors))


def launch_order(points: int, rounds: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Which point to launch when: every point once in each round, in an order drawn anew for each.

    Rounds are blocks: what drifts from one to the next cancels, and within a round chance sides with nobody.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    return tuple(tuple(int(i) for i in rng.permutation(points)) for _ in range(rounds))


def main_contrasts(design: Design, available: Sequence[bool] | None = None) -> list[np.ndarray | None]:
    """Weights over the points whose sum is each factor's main effect; None where no available points tell it.

    Args:
        design: The points.
        available: Whether each point was measured at all; by default every one was. One factor at a time then uses
            the end it has. A fractional factorial that lacks points has none of these weights: without its balance
            main effects and interactions mix.
    """
    import numpy as np

    have = list(available) if available is not None else [True] * len(design.points)
    if design.kind == "fractional factorial":
        signs = np.where(np.array(design.points), 1.0, -1.0)
        return [2 * signs[:, i] / len(design.points) if all(have) else None for i in range(design.factors)]
    found: list[np.ndarray | None] = []
    for factor in range(design.factors):
        ends = [e for e in end_contrasts(design, factor) if all(have[i] for i in np.flatnonzero(e))]
        found.append(np.mean(ends, axis=0) if ends else None)
    return found


def end_contrasts(design: Design, factor: int) -> tuple[np.ndarray, ...]:
    """Weights of one factor's effect at the base and at the candidate; none for a fractional factorial."""
    import numpy as np

    if design.kind == "fractional factorial":
        return ()
    place = {point: i for i, point in enumerate(design.points)}
    alone = tuple(i == factor for i in range(design.factors))
    without = tuple(not on for on in alone)
    off, on = (False,) * design.factors, (True,) * design.factors
    ends = []
    for after, before in dict.fromkeys(((alone, off), (on, without))):  # one and the same with a single factor
        weights = np.zeros(len(design.points))
        weights[place[after]] += 1
        weights[place[before]] -= 1
        ends.append(weights)
    return tuple(ends)


def _from_both_ends(factors: int) -> tuple[Point, ...]:
    single = [tuple(i == factor for i in range(factors)) for factor in range(factors)]
    without = [tuple(not on for on in point) for point in single]
    return tuple(dict.fromkeys(((False,) * factors, *single, *without[::-1], (True,) * factors)))


def _folded(factors: int) -> tuple[Point, ...]:
    """A Hadamard matrix of the smallest sufficient order, and its complement; its first row is the candidate."""
    order = next(n for n in (8, 12, 16, 20, 24) if n >= factors)
    upper = [tuple(bool(sign > 0) for sign in row[:factors]) for row in _hadamard(order)]
    lower = [tuple(not on for on in point) for point in upper]
    return (lower[0], *upper[1:], *lower[:0:-1], upper[0])


def _hadamard(order: int) -> np.ndarray:
    """A Hadamard matrix whose first row is all +1: Sylvester's, or Paley's first construction."""
    import numpy as np
    from scipy.linalg import hadamard

    if order not in _PALEY:
        return np.asarray(hadamard(order))
    prime = _PALEY[order]
    squares = {i * i % prime for i in range(1, prime)}
    residue = np.array([0 if i == 0 else 1 if i in squares else -1 for i in range(prime)])
    jacobsthal = np.array([[residue[(i - j) % prime] for j in range(prime)] for i in range(prime)])
    matrix = np.ones((order, order), dtype=int)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = jacobsthal + np.eye(prime, dtype=int)
    return matrix
