"""``python -I -S …/guardian guard STATE``, or ``… reap STATE…``."""

import sys
from pathlib import Path

# The folder that holds the package takes the place of this one, last: the standard library stands over all.
sys.path[:] = [*sys.path[1:], str(Path(__file__).parents[3])]

if sys.argv[1] == "guard":
    from pytest_vllmperf.adapters.guardian.guard import guard

    guard(Path(sys.argv[2]))
else:
    from pytest_vllmperf.adapters.guardian.reap import reap

    reap(*map(Path, sys.argv[2:]))
