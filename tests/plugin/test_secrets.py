"""No secret leaves a run by any way out, whatever a careless server or test shows (fault plan, X)."""

from pathlib import Path

import pytest
from pytest_command import PLAIN

CANARY = "hf_canaryCANARYcanaryCANARY42"
OTHER = "quite-secret-value-4711"

CONFTEST = """
import pytest
from pytest_vllmperf import EngineConfig

def pytest_vllmperf_engines(config):
    leaky = {{"fake-leak": True}}
    env = {{"MY_API_KEY": {other!r}}}
    return [
        EngineConfig(name="leaky", model="fake", command={command!r}, args=leaky | {{"fake-shape": "http-500",
                     "fake-shape-after": 3}}, env=env),
        EngineConfig(name="failing", model="fake", command={command!r}, env=env,
                     args=leaky | {{"fake-fail-start": "ValueError: no"}}),
    ]

class Held:
    def __repr__(self):
        return "<token {canary}>"

@pytest.fixture
def held():
    return Held()
"""

SUITE = """
import os, sys
from pytest_vllmperf import Workload

TINY = Workload(name="tiny", input_tokens=8, output_tokens=4, requests=4, max_concurrency=2)

def test_measures(vllm_measure, vllm_check):
    vllm_check(vllm_measure(TINY), "ttft_mean")

def test_shows(vllm_engine, held, record_property):
    token = os.environ["HF_TOKEN"]
    record_property("token", token)
    print("printed", token, vllm_engine.api_key)
    print("printed", token, file=sys.stderr)
    with open("keys", "a") as keys:
        keys.write(vllm_engine.api_key + "\\n")
    assert held is None, f"the token was {token}, the key {vllm_engine.api_key}"
"""


@pytest.mark.parametrize("workers", [(), ("-n1", "--vllmperf-share-cpu")])
def test_no_secret_is_in_anything_a_run_shows_or_writes(pytester, fake_command, monkeypatch, workers):
    """X01."""
    for name in ("CI", "MODEL", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    pytester.makeconftest(CONFTEST.format(command=fake_command, other=OTHER, canary=CANARY))
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess(*PLAIN, "-rA", "--junitxml=junit.xml", "--showlocals", *workers)
    assert result.ret != 0
    keys = set((pytester.path / "keys").read_text().split())
    assert keys
    written = {
        path: path.read_text(errors="replace")
        for path in pytester.path.rglob("*")
        if path.is_file() and "logs" not in path.parts and path.suffix not in (".py", ".pyc") and path.name != "keys"
    }
    assert {"junit.xml", "report.json", "report.md", "index.html"} <= {path.name for path in written}
    written[Path("terminal")] = result.stdout.str() + result.stderr.str()
    encoded = "aGZfY2FuYXJ5Q0FOQVJZY2FuYXJ5Q0FOQVJZNDI"
    for secret in (CANARY, OTHER, encoded, *keys):
        assert [str(path) for path, text in written.items() if secret in text] == []
    assert "[redacted]" in written[Path("terminal")]
