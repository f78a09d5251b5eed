"""Moving history through a real object store's protocol: S3, spoken by s3fs to moto's server on loopback.

Runs where both are installed: ``pip install s3fs 'moto[server]'``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_vllmperf.adapters.benchmark_storage import save_run

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket() -> Iterator[tuple[str, dict[str, str]]]:
    """An empty bucket, and the environment that reaches it."""
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    reach = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3", endpoint_url=reach["AWS_ENDPOINT_URL"], aws_access_key_id="testing", aws_secret_access_key="testing",
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket="history")
    yield "s3://history/project/runs", reach
    server.stop()


def started(project: Path, reach: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    project.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest_vllmperf.cli", "history", *arguments, "-C", str(project)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **reach}, stdout=pipe, stderr=pipe, text=True)


def move(project: Path, reach: dict[str, str], *arguments: str) -> str:
    process = started(project, reach, *arguments)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, out + error
    return out


def save(project: Path, number: int) -> None:
    content = {"benchmarks": [], "datetime": f"2026-01-{number:02}T10:00:00+00:00", "number": number}
    save_run(project / ".benchmarks", content, hardware="NVIDIA H200", name="run")


def stored(project: Path) -> list[int]:
    return [json.loads(path.read_text())["number"] for path in sorted((project / ".benchmarks").glob("*/*.json"))]


def test_runners_push_at_once_and_the_next_one_pulls_all_in_order(bucket, tmp_path: Path) -> None:
    where, reach = bucket
    assert f"Pulled 0 runs from {where}" in move(tmp_path / "first", reach, "pull", where)
    runners = [tmp_path / name for name in ("one", "two", "three")]
    for number, project in enumerate((*runners, *runners), start=1):
        save(project, number)
    processes = [started(project, reach, "push", where) for project in runners]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert (process.returncode, "Pushed 2 runs" in out) == (0, True), out + error
    move(tmp_path / "next", reach, "pull", where)
    assert stored(tmp_path / "next") == [1, 2, 3, 4, 5, 6]
    assert "Pushed 0 runs" in move(runners[0], reach, "push", where)
    move(tmp_path / "short", reach, "pull", where, "--latest=2")
    assert stored(tmp_path / "short") == [5, 6]


def test_a_bucket_that_is_not_there_is_told(bucket, tmp_path: Path) -> None:
    _, reach = bucket
    save(tmp_path, 1)
    process = started(tmp_path, reach, "push", "s3://another/runs")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.startswith("vllmperf: s3://another/runs: ")
    assert "Traceback" not in error
