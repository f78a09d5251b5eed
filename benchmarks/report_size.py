"""How long the largest page takes to build and to open, and how large it is.

50 engines × 10 workloads × 1 000 requests each, with limits, curves, time lines and the slowest requests; and a small
run with 500 stored ones. A page is open when a real Chromium has loaded it and drawn a frame. Beside it, in the
same browser, an empty page: what a browser itself takes. The last line is one JSON object.

    python benchmarks/report_size.py [--engines 50] [--workloads 10] [--requests 1000] [--opens 5]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

import report_samples as sample  # noqa: E402
from chromium import Chromium, Tab, find_chromium  # noqa: E402

from pytest_vllmperf.adapters.html_report import write_html  # noqa: E402

DRAWN = "new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)))"


def built(path, report, history=()):
    """Seconds it takes to write a page, and its size in MB."""
    began = time.perf_counter()
    write_html(report, path, history=history)
    return time.perf_counter() - began, path.stat().st_size / 1e6


def opened(browser, path, times):
    """Seconds from navigation until a frame is drawn, once for each of ``times``."""
    seconds = []
    for _ in range(times):
        tab = Tab(browser)
        began = time.perf_counter()
        tab.open(path)
        tab.evaluate(DRAWN)
        seconds.append(time.perf_counter() - began)
        assert tab.complaints() == []
        tab.close()
    return seconds


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, default=50)
    parser.add_argument("--workloads", type=int, default=10)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--opens", type=int, default=5)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    report = sample.large(engines=given.engines, workloads=given.workloads, requests=given.requests)
    build_s, size_mb = built(folder / "large.html", report)
    one = sample.troubled()
    nights = [sample.past_run(one, day=1 + n % 28, factor=1 + (n % 7) / 100) for n in range(500)]
    nights_s, nights_mb = built(folder / "nights.html", one, nights)
    (folder / "empty.html").write_text("<!DOCTYPE html><title>empty</title>")
    browser = Chromium(find_chromium(), folder)
    try:
        opened(browser, folder / "empty.html", 1)
        times = {name: opened(browser, folder / f"{name}.html", given.opens) for name in ("empty", "large", "nights")}
    finally:
        browser.close()
    for name, seconds in times.items():
        print(f"{name}: opens in {', '.join(f'{s:.2f}' for s in seconds)} s")
    print(
        json.dumps(
            {
                "build_s": round(build_s, 2),
                "size_mb": round(size_mb, 2),
                "open_s": round(statistics.median(times["large"]), 2),
                "open_worst_s": round(max(times["large"]), 2),
                "open_empty_s": round(statistics.median(times["empty"]), 2),
                "nights_build_s": round(nights_s, 2),
                "nights_mb": round(nights_mb, 2),
                "nights_open_s": round(statistics.median(times["nights"]), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
