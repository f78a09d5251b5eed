"""Two runs that end at once: pytest-benchmark's real storage, written by several processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest_vllmperf

ROOT = Path(pytest_vllmperf.__file__).parent.parent

WRITER = """
import sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from pytest_benchmark.storage.file import FileStorage
from pytest_vllmperf.adapters.benchmark_storage import store_by_hardware

storage = FileStorage(sys.argv[2], logger=SimpleNamespace(info=lambda text: None))
session = SimpleNamespace(storage=storage)
store_by_hardware(SimpleNamespace(_benchmarksession=session), "NVIDIA H200 (MIG 1g.18gb)")
for number in range(500):
    storage.save({"benchmarks": [], "writer": sys.argv[3], "number": number}, "same-name")
"""


def test_runs_that_save_at_once_under_one_name_lose_nothing(tmp_path):
    """D02."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(ROOT), str(tmp_path / "store"), str(writer)])
        for writer in range(2)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    files = sorted((tmp_path / "store" / "NVIDIA-H200-MIG-1g.18gb").glob("*.json"))
    read = [json.loads(path.read_text()) for path in files]
    assert sorted((r["writer"], r["number"]) for r in read) == [(str(w), n) for w in range(2) for n in range(500)]
    assert [path.name for path in files] == [f"{n:04}_same-name.json" for n in range(1, 1001)]
