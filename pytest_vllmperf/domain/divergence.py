"""How far two engines' next-token distributions are apart on given texts: KL divergence, top-1 agreement, perplexity.

No filter, no stop string and no generation takes part, so these tell a broken model from a broken measurement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Divergence", "ReadText", "diverge", "perplexity"]

_LEAST = 1e-9
"""Probability below which what is left of a distribution counts as this: logarithms of 0 have no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadText:
    """How likely a model holds each token of a given answer, after its prompt.

    Args:
        tokens: The answer's token ids.
        logprobs: Natural logarithm of each one's probability.
        top: By position, the likeliest tokens and the logarithms of their probabilities.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[Mapping[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A candidate's distributions against a reference's.

    Args:
        kl_by_text: Mean KL(reference ‖ candidate) of each text, in nats a token.
        agreement_by_text: Share of each text's positions at which both hold the same token likeliest.
        tokens: Positions compared, over all texts.
        kl_mean: Mean KL over all positions.
        top1_agreement: Agreement over all positions.
    """

    kl_by_text: tuple[float, ...]
    agreement_by_text: tuple[float, ...]
    tokens: int
    kl_mean: float
    top1_agreement: float


def diverge(reference: Sequence[ReadText], candidate: Sequence[ReadText]) -> Divergence | None:
    """Compare the texts both have read, token for token; None where there are none.

    Of each distribution the likeliest tokens are known, all others are one bucket: KL = Σ p·ln(p/q) over the
    reference's known tokens and the bucket. Grouping can only make KL smaller (data processing inequality). A
    token the candidate does not list gets the probability of its least likely listed one, the most it can have.
    """
    known = {text.tokens: text for text in candidate}
    pairs = [(text, known[text.tokens]) for text in reference if text.tokens and text.tokens in known]
    if not pairs:
        return None
    divergences, agreements = [], []
    for ours, theirs in pairs:
        positions = list(zip(ours.top, theirs.top, strict=True))
        divergences.append([_kl(p, q) for p, q in positions])
        agreements.append([max(p, key=p.__getitem__) == max(q, key=q.__getitem__) for p, q in positions])
    tokens = sum(map(len, divergences))
    return Divergence(
        kl_by_text=tuple(sum(one) / len(one) for one in divergences),
        agreement_by_text=tuple(sum(one) / len(one) for one in agreements),
        tokens=tokens,
        kl_mean=math.fsum(math.fsum(one) for one in divergences) / tokens,
        top1_agreement=sum(map(sum, agreements)) / tokens,
    )


def perplexity(texts: Sequence[ReadText]) -> float | None:
    """exp(−mean log-probability) over all tokens of all texts; None without any."""
    logprobs = [value for text in texts for value in text.logprobs]
    if not logprobs:
        return None
    return math.exp(min(700.0, -math.fsum(logprobs) / len(logprobs)))


def _kl(p: Mapping[int, float], q: Mapping[int, float]) -> float:
    floor = min(q.values())
    total, p_mass, q_mass = 0.0, 0.0, 0.0
    for token, logprob in p.items():
        other = q.get(token, floor)
        share = math.exp(logprob)
        total += share * (logprob - other)
        p_mass += share
        q_mass += math.exp(other)
    p_rest, q_rest = max(_LEAST, 1 - p_mass), max(_LEAST, 1 - q_mass)
    return max(0.0, total + p_rest * math.log(p_rest / q_rest))
