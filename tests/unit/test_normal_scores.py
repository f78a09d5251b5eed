"""Normal scores are what SciPy's statistics make of the same values."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from pytest_vllmperf.domain.normal_scores import normal_scores

few = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
anything = st.floats(allow_nan=False)


@given(values=st.lists(few | anything, min_size=1, max_size=40))
def test_they_are_the_quantiles_of_mean_ranks(values):
    assert np.array_equal(normal_scores(values), norm.ppf((rankdata(values) - 0.5) / len(values)))


def test_equal_values_score_alike():
    assert list(normal_scores([3.0, 3.0, 3.0])) == [0.0, 0.0, 0.0]
