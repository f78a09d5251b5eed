"""What the reference server does to a request, in seconds: planted effects, launch shift, AR(1) noise, service times.

Pure and seeded: the same flags and the same launch number give the same times.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["QUANTITIES", "Effect", "Noise", "factors_of", "flags_in", "launch_shift", "parse_effect"]

QUANTITIES = ("ttft", "tpot", "api-delay", "slots", "memory", "fail-start")
"""What an effect may change. ``memory`` is MiB of host memory, ``slots`` how many requests are served at once."""

_CHANGE = re.compile(r"(?P<quantity>[a-z-]+)(?:(?P<operator>[*+])(?P<amount>[0-9.]+))?")


@dataclass(frozen=True)
class Effect:
    """Planted: where every condition holds, ``quantity`` is multiplied by ``factor`` and grows by ``addend``."""

    conditions: tuple[tuple[str, str | None], ...]
    quantity: str
    factor: float = 1.0
    addend: float = 0.0

    def holds(self, flags: dict[str, str]) -> bool:
        """Whether the command line asks for it. A flag switched off with ``false`` is not there."""
        return all(
            name in flags and (flags[name] != "false" if value is None else flags[name] == value)
            for name, value in self.conditions
        )


def parse_effect(text: str) -> tuple[Effect, ...]:
    """Read ``flag=NAME[=VALUE][&NAME[=VALUE]…]:QUANTITY*FACTOR[,QUANTITY+ADDEND…]``.

    Such as ``flag=enforce-eager:tpot*1.2``, ``flag=a=4&b:ttft*1.5,tpot*0.9`` or ``flag=x:fail-start``.

    Raises:
        ValueError: It is not of that form.
    """
    kind, equals, rest = text.partition("=")
    conditions, colon, changes = rest.rpartition(":")
    if kind != "flag" or not equals or not colon or not conditions:
        raise ValueError(f"effect {text!r}: write flag=NAME[=VALUE][&…]:QUANTITY*FACTOR[,…]")
    wanted = []
    for condition in conditions.split("&"):
        name, given, value = condition.partition("=")
        wanted.append((_flag_name(name), value if given else None))
    effects = []
    for change in changes.split(","):
        found = _CHANGE.fullmatch(change)
        if not found or found["quantity"] not in QUANTITIES:
            raise ValueError(f"effect {text!r}: {change!r} must be QUANTITY*FACTOR or QUANTITY+ADDEND, of {QUANTITIES}")
        amount = float(found["amount"] or 0)
        operator = found["operator"]
        effects.append(
            Effect(
                conditions=tuple(wanted),
                quantity=found["quantity"],
                factor=amount if operator == "*" else 1.0,
                addend=amount if operator == "+" else 0.0,
            )
        )
    return tuple(effects)


def factors_of(effects: Iterable[Effect], flags: dict[str, str]) -> dict[str, tuple[float, float]]:
    """``(factor, addend)`` by quantity, of all effects that hold; ``fail-start`` is there when one says so."""
    found: dict[str, tuple[float, float]] = {}
    for effect in effects:
        if effect.holds(flags):
            factor, addend = found.get(effect.quantity, (1.0, 0.0))
            found[effect.quantity] = (factor * effect.factor, addend + effect.addend)
    return found


def flags_in(argv: Sequence[str]) -> dict[str, str]:
    """Every ``--flag value``, ``--flag=value`` and ``--flag`` (value ``true``) of a command line, with dashes."""
    flags: dict[str, str] = {}
    place = 0
    while place < len(argv):
        word = argv[place]
        place += 1
        if not word.startswith("--"):
            continue
        name, given, value = word[2:].partition("=")
        if not given and place < len(argv) and not argv[place].startswith("--"):
            value = argv[place]
            place += 1
        flags[_flag_name(name)] = value if given or value else "true"
    return flags


def _flag_name(name: str) -> str:
    return name.strip().lstrip("-").replace("_", "-")


def launch_shift(*, sd: float, seed: str, launch: int) -> float:
    """The factor one launch keeps for all its life: lognormal, ``sd`` relative."""
    return math.exp(random.Random(f"{seed}:launch:{launch}").gauss(0.0, sd)) if sd else 1.0


@dataclass
class Noise:
    """Random factors of one launch.

    Requests have a factor each, whose logarithm is AR(1) in the order of arrival: stationary standard deviation
    ``sd``, autocorrelation ``phi``. Gaps between tokens have one of their own, independent, of ``jitter``.
    With ``exponential`` each request's times are multiplied by an exponential draw of mean 1.
    """

    seed: str
    phi: float = 0.0
    sd: float = 0.0
    jitter: float = 0.0
    exponential: bool = False
    _draw: random.Random = field(init=False)
    _state: float | None = None

    def __post_init__(self) -> None:
        self._draw = random.Random(f"{self.seed}:noise")

    def request_factor(self) -> float:
        """The next request's factor."""
        factor = self._draw.expovariate(1.0) if self.exponential else 1.0
        if not self.sd:
            return factor
        if self._state is None:
            self._state = self._draw.gauss(0.0, self.sd)
        else:
            innovation = self.sd * math.sqrt(1.0 - self.phi * self.phi)
            self._state = self.phi * self._state + self._draw.gauss(0.0, innovation)
        return factor * math.exp(self._state)

    def gap_factor(self) -> float:
        """The next gap's factor."""
        return math.exp(self._draw.gauss(0.0, self.jitter)) if self.jitter else 1.0
