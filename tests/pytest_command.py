"""How a test starts pytest in a process of its own."""

import sys

PYTEST = (sys.executable, "-m", "pytest", "-pno:randomly")
"""In the order written: pytest-randomly, which is installed here, would shuffle where no configuration forbids it."""
