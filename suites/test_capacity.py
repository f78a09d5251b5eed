"""Capacity: how many requests a second until users wait too long? Opt-in: ``pytest suites/ -m capacity``.

The service level and the requests are those of the workload ``chat`` in conftest.py; each engine takes a dozen loads.
"""

import pytest

pytestmark = pytest.mark.capacity


@pytest.mark.vllm_workload("chat")
def test_users_are_served_at_this_rate(vllm_capacity, vllm_check):
    """The largest rate at which 99 % of the requests meet the service level; the curve and its knee in the report."""
    vllm_check(vllm_capacity("chat"), "capacity_rps")
