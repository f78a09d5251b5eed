"""What watching the GPUs costs: the share of one core that the 20 Hz sampler takes while nothing else runs.

    python benchmarks/device_sampler.py --seconds 20

Needs an NVIDIA driver. The sampler is the one every measurement runs, with this process standing for the engine's, and
a second GPU changes nothing in its period. The last line is one JSON object: ``cpu_share`` (of one core, the thread's
own CPU time), ``samples_per_s``, ``longest_gap_ms`` and ``failures``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """Sample for the time asked and print what it cost."""
    from pytest_vllmperf.adapters.gpu import DeviceSampler, list_gpus

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    uuids = [gpu.uuid for gpu in list_gpus()]
    if not uuids:
        print("device_sampler: no NVIDIA GPU here", file=sys.stderr)
        return 2
    members = {os.getpid()}
    began = time.monotonic()
    with DeviceSampler(uuids, lambda: members) as sampler:
        threading.Event().wait(options.seconds)
    took = time.monotonic() - began
    gaps = [later.at_ns - sooner.at_ns for sooner, later in pairwise(sampler.samples)]
    print(
        json.dumps(
            {
                "cpu_share": round(sampler.cpu_s / took, 5),
                "samples_per_s": round(len(sampler.samples) / took, 2),
                "longest_gap_ms": round(max(gaps) / 1e6, 1),
                "gpus": len(uuids),
                "failures": sampler.failures,
            }
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
