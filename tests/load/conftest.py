"""The fake engine as a running server."""

from collections.abc import Callable, Iterator

import pytest
from serving import FakeServer, running


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """Start fake engines with the flags given; all are stopped afterwards."""
    with running() as start:
        yield start
