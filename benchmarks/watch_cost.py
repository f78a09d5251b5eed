"""What watching an engine costs: the share of one core that its watchers take while real vLLM is idle.

    python benchmarks/watch_cost.py --seconds 20

One real vLLM server (the bundled model, on the CPU) is watched as in every measurement: resident memory of its
process tree four times a second and the proportional set size where it may have changed, the server's counters twice a
second, less often where they are dear (``Watch``; also each of the two alone), and life 2.5 times a second (``Life``).
This process does nothing else meanwhile, so its whole CPU time is theirs. The peer reads the same memory once a
second through psutil (``memory_full_info().pss`` of each process of the tree). The last line is one JSON object:
shares of one core, and ``ratio`` = what ``Watch`` and ``Life`` take together to what the peer takes for the memory
alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ARGS = {"enforce-eager": True, "max-model-len": 2048, "max-num-seqs": 8}


def share(seconds: float, watching: AbstractContextManager[object], work: Callable[[], object] | None = None) -> float:
    """CPU time of this process in a span of ``seconds``, begin and end included; ``work`` is done once a second."""
    began, used = time.monotonic(), time.process_time()
    with watching:
        while (left := began + seconds - time.monotonic()) > 0:
            if work is not None:
                work()
            threading.Event().wait(min(1.0, left))
    return (time.process_time() - used) / (time.monotonic() - began)


def main() -> int:
    """Launch, watch in each way, print what each cost."""
    import psutil

    from pytest_vllmperf import EngineConfig
    from pytest_vllmperf.adapters.control_client import ControlClient
    from pytest_vllmperf.adapters.environment import gather_environment
    from pytest_vllmperf.pool import EnginePool
    from pytest_vllmperf.watch import Life, Watch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    config = EngineConfig(name="watched", model=str(ROOT / "suites" / "models" / "tinymath"), args=ARGS)
    environment = gather_environment(ROOT, gpus=(), driver=None)
    with tempfile.TemporaryDirectory() as folder:
        pool = EnginePool(engines={"watched": config}, environment=environment, directory=Path(folder))
        try:
            handle = pool.acquire("watched")
            assert handle.pid is not None
            tree = [psutil.Process(handle.pid), *psutil.Process(handle.pid).children(recursive=True)]
            with ControlClient(handle.base_url, handle.api_key) as control:
                watch = Watch(pid=handle.pid, gpu_uuids=(), counters=control.counters)
                still = control.counters()
                memory = Watch(pid=handle.pid, gpu_uuids=(), counters=lambda: still)
                counters = Watch(pid=None, gpu_uuids=(), counters=control.counters)
                found = {
                    "idle": share(options.seconds / 4, nullcontext()),
                    "watch": share(options.seconds, watch),
                    "memory": share(options.seconds, memory),
                    "counters": share(options.seconds, counters),
                    "life": share(options.seconds, Life(handle)),
                    "psutil": share(
                        options.seconds,
                        nullcontext(),
                        lambda: [p.memory_full_info().pss for p in tree if p.is_running()],
                    ),
                }
        finally:
            pool.close()
    result = {
        **{f"cpu_share_{name}": round(value, 5) for name, value in found.items()},
        "ratio": round((found["watch"] + found["life"]) / found["psutil"], 2),
        "processes": len(tree),
        "host_samples": len(watch.memory),
        "scrapes": len(watch.scrapes),
        "failures": watch.failures,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
