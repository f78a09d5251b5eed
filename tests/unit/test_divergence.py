import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.divergence import ReadText, diverge, perplexity


def text(rows, tokens=None):
    """A text whose positions have the distributions ``rows`` over the tokens 0, 1, 2, …; every token is listed."""
    tokens = tuple(tokens or [0] * len(rows))
    top = tuple({token: math.log(p) for token, p in enumerate(row) if p > 0} for row in rows)
    return ReadText(
        tokens=tokens, logprobs=tuple(math.log(row[t]) for row, t in zip(rows, tokens, strict=True)), top=top
    )


def distributions(size):
    return st.lists(st.floats(0.01, 1.0), min_size=size, max_size=size).map(lambda x: tuple(v / sum(x) for v in x))


@given(p=distributions(5), q=distributions(5))
def test_with_every_token_listed_it_is_the_kl_divergence(p, q):
    from scipy.stats import entropy

    found = diverge([text([p])], [text([q])])
    assert found.kl_mean == pytest.approx(entropy(p, q), abs=1e-6)


@given(p=distributions(6), q=distributions(6))
def test_what_is_not_listed_is_one_bucket_and_can_only_make_it_smaller(p, q):
    from scipy.stats import entropy

    kept = sorted(range(6), key=lambda i: -p[i])[:3]
    reference = ReadText(tokens=(0,), logprobs=(0.0,), top=({i: math.log(p[i]) for i in kept},))
    candidate = ReadText(tokens=(0,), logprobs=(0.0,), top=({i: math.log(q[i]) for i in kept},))
    found = diverge([reference], [candidate])
    assert -1e-9 <= found.kl_mean <= entropy(p, q) + 1e-6


def test_equal_distributions_agree_and_are_no_distance_apart():
    one = text([(0.7, 0.3), (0.4, 0.6)])
    found = diverge([one], [one])
    assert (found.kl_mean, found.top1_agreement, found.tokens) == (pytest.approx(0, abs=1e-12), 1.0, 2)


def test_means_are_over_tokens_and_agreement_over_positions():
    short, long = text([(0.9, 0.1)], [0]), text([(0.9, 0.1)] * 3, [0, 0, 1])
    other = text([(0.9, 0.1), (0.9, 0.1), (0.1, 0.9)], [0, 0, 1])
    found = diverge([short, long], [short, other])
    assert found.tokens == 4
    assert found.top1_agreement == 0.75
    assert found.kl_by_text[0] == pytest.approx(0, abs=1e-12)
    assert found.kl_mean == pytest.approx(found.kl_by_text[1] * 3 / 4)


def test_texts_only_one_side_has_read_are_left_out():
    assert diverge([text([(1.0,)])], [text([(0.5, 0.5)], [1])]) is None
    assert diverge([], []) is None


def test_perplexity_is_the_exponential_of_the_mean_surprise():
    assert perplexity([text([(0.5, 0.5)] * 4)]) == pytest.approx(2.0)
    assert perplexity([]) is None
    worst = ReadText(tokens=(1,), logprobs=(-1e9,), top=({1: -1e9},))
    assert np.isfinite(perplexity([worst]))
