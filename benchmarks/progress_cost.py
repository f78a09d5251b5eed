"""What the live bar costs beside a measurement, in CPU time of pytest's process.

The bar is drawn on a real pseudo-terminal as a measurement draws it: one status with each scrape of the server's
counters, twice a second, for a load of ``--seconds``. The scraping itself happens with and without a bar, and the load
process is never asked. Its share is of one core over the same time, and of ``--measured-cpu-share``, the cores that
the load process and the engine used in a real run. The last line is one JSON object.

    python benchmarks/progress_cost.py [--seconds 600] [--measured-cpu-share 1.0]
"""

import argparse
import json
import os
import pty
import threading
import time

from pytest_vllmperf import progress
from pytest_vllmperf.domain.records import ServerCounters
from pytest_vllmperf.domain.status import load_status

PERIOD_S = 0.5


def scrape(number):
    """Counters of a server that answers 40 requests and 5 000 tokens a second."""
    return ServerCounters(
        at_ns=round(number * PERIOD_S * 1e9),
        generation_tokens=2500 * number,
        prompt_tokens=0,
        prefix_cache_hits=0,
        preemptions=0,
        kv_cache_usage=0.5,
        requests_finished=20 * number,
        latencies={"ttft": (4.0 * number, 20 * number)},
    )


def drained(descriptor):
    """Read a terminal until it is closed."""
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        pass


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the load that is shown")
    parser.add_argument("--measured-cpu-share", type=float, default=1.0, help="cores that load process and engine use")
    given = parser.parse_args()
    controller, terminal = pty.openpty()
    reader = threading.Thread(target=drained, args=(controller,), daemon=True)
    reader.start()
    scrapes = [scrape(n) for n in range(round(given.seconds / PERIOD_S) + 1)]
    planned = 20 * len(scrapes)
    with os.fdopen(terminal, "w") as file:
        live = progress._Live(file, colour=True)
        live.show(load_status("warm", tuple(scrapes[:2]), planned=planned))
        began_cpu, began = time.thread_time_ns(), time.perf_counter()
        for n in range(1, len(scrapes)):
            live.show(load_status("baseline: heavy", tuple(scrapes[: n + 1]), planned=planned))
        cpu_s, wall_s = (time.thread_time_ns() - began_cpu) * 1e-9, time.perf_counter() - began
        live.close()
    each_ms = 1e3 * cpu_s / (len(scrapes) - 1)
    print(f"{len(scrapes) - 1} statuses in {wall_s:.2f} s: {each_ms:.2f} ms each, {given.seconds:.0f} s of load")
    share = cpu_s / given.seconds
    print(
        json.dumps(
            {
                "ms_per_status": round(each_ms, 3),
                "share_of_a_core": round(share, 5),
                "share_of_measurement_cpu": round(share / given.measured_cpu_share, 5),
                "statuses": len(scrapes) - 1,
            }
        )
    )


if __name__ == "__main__":
    main()
