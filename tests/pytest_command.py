"""How a test starts pytest in a process of its own."""

import sys

PLAIN = tuple(f"-pno:{name}" for name in ("randomly", "hypothesispytest", "anyio", "unraisableexception"))
"""Without plugins that no such test is about: pytest-randomly would shuffle where no configuration forbids it,
Hypothesis doubles the time of a start, and unraisable exceptions are looked for in five collections of garbage."""
PYTEST = (sys.executable, "-m", "pytest", *PLAIN)
