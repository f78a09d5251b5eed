"""The control plane against real servers: the fake engine, and small servers that misbehave."""

import http.server
import json
import socket
import subprocess
import threading
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.adapters.control_client import ControlClient, RequestRefused, parse_counters
from pytest_vllmperf.errors import EngineError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def engine(fake_command, monkeypatch):
    """Start a fake engine with flags; gives its base URL."""
    started = []
    monkeypatch.setenv("VLLM_API_KEY", "the-key")

    def start(*flags):
        port = free_port()
        command = (*fake_command, "--model", "m", "--port", str(port), *flags)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        with ControlClient(url, timeout_s=1.0) as control:
            deadline = time.monotonic() + 20
            while not control.is_healthy():
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


@pytest.fixture
def serve():
    """Serve scripted answers: ``serve({"/v1/models": (200, b"…")})`` gives the base URL."""
    servers = []

    def start(answers):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                status, body = answers.get(self.path, (404, b"not here"))
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the base class looks for this name

            def log_message(self, *_args):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_live_engine_answers_everything(engine):
    with ControlClient(engine("--fake-version", "0.32.0"), "the-key") as control:
        assert control.is_healthy()
        assert control.models() == ("m",)
        assert control.version() == "0.32.0"
        control.require_model("m")


def test_the_first_token_is_timed_until_text_arrives(engine):
    with ControlClient(engine("--fake-ttft-ms", "80"), "the-key") as control:
        first = control.first_token("m")
    assert first.text.startswith(" tok")
    assert first.ttft_ns >= 80_000_000


def test_counters_are_read(engine):
    url = engine("--fake-prefix-cache", "--fake-preemptions", "3")
    with ControlClient(url, "the-key") as control:
        control.first_token("m")
        for _ in range(2):
            httpx.post(
                f"{url}/v1/completions",
                json={"model": "m", "prompt": list(range(40)), "max_tokens": 2},
                headers={"Authorization": "Bearer the-key"},
            )
        counters = control.counters()
    assert counters.generation_tokens == 4 + 2 * 2
    assert counters.prompt_tokens > 0
    assert (counters.prefix_cache_queries, counters.prefix_cache_hits, counters.cache_block_tokens) == (80, 32, 16)
    assert counters.preemptions == 3
    assert counters.kv_cache_usage == 0.0


def test_the_context_is_told_for_the_model_that_is_served(engine):
    with ControlClient(engine(), "the-key") as control:
        assert control.context_tokens("m") == 4096
        assert control.context_tokens("other") is None
    with ControlClient("http://127.0.0.1:1", "the-key", timeout_s=1.0) as nobody:
        assert nobody.context_tokens("m") is None


def test_a_wrong_key_is_refused(engine):
    with ControlClient(engine(), "another-key") as control, pytest.raises(RequestRefused, match="HTTP 401"):
        control.models()


def test_an_unknown_model_is_refused_with_the_servers_words(engine):
    with (
        ControlClient(engine(), "the-key") as control,
        pytest.raises(RequestRefused, match=r"HTTP 404: .*The model `other` does not exist"),
    ):
        control.first_token("other")


def test_a_model_that_is_not_listed_names_those_that_are(engine):
    with (
        ControlClient(engine(), "the-key") as control,
        pytest.raises(RequestRefused, match="lists m, not 'other': set EngineConfig"),
    ):
        control.require_model("other")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("in-band-error", "error in the stream"),
        ("garbage", "not an event"),
        ("cut", "RemoteProtocolError"),
        ("http-500", "HTTP 500"),
        ("html", "without a token"),
    ],
)
def test_a_broken_answer_is_no_first_token(engine, shape, message):
    with ControlClient(engine("--fake-shape", shape), "the-key") as control, pytest.raises(EngineError, match=message):
        control.first_token("m")


def test_a_server_that_never_answers_runs_into_the_time_limit(engine):
    url = engine("--fake-ttft-ms", "60000")
    with ControlClient(url, "the-key") as control, pytest.raises(EngineError, match="ReadTimeout"):
        control.first_token("m", timeout_s=0.2)


def test_tokens_without_text_count_by_their_arrival(serve):
    event = json.dumps({"choices": [{"text": ""}]}).encode()
    url = serve({"/v1/completions": (200, b"data: " + event + b"\n\ndata: [DONE]\n\n")})
    with ControlClient(url) as control:
        first = control.first_token("m")
    assert first.text == ""
    assert first.ttft_ns > 0


def test_nobody_there_is_not_healthy_and_has_no_figures():
    with ControlClient(f"http://127.0.0.1:{free_port()}", timeout_s=1.0) as control:
        assert not control.is_healthy()
        assert control.version() is None
        assert control.counters().generation_tokens is None
        with pytest.raises(EngineError, match="/v1/models: no answer"):
            control.models()
        with pytest.raises(EngineError, match="ConnectError"):
            control.first_token("m")


def test_a_server_that_is_not_vllm_has_no_version_and_no_counters(serve):
    with ControlClient(serve({"/health": (200, b"ok"), "/version": (200, b"[]")})) as control:
        assert control.is_healthy()
        assert control.version() is None
        counters = control.counters()
    assert (counters.generation_tokens, counters.preemptions, counters.kv_cache_usage) == (None, None, None)


@pytest.mark.parametrize("body", [b"no json", b"{}", b'{"data": [1]}'])
def test_an_answer_that_lists_no_models_is_an_error(serve, body):
    with ControlClient(serve({"/v1/models": (200, body)})) as control, pytest.raises(EngineError, match="not a list"):
        control.models()


def test_a_servers_configuration_is_read_where_it_tells(engine):
    with ControlClient(engine("--fake-server-info", '{"vllm_config": {"a": 1}}')) as control:
        assert control.server_info() == {"vllm_config": {"a": 1}}
        assert "vllm:generation_tokens_total" in control.metrics_text()


@pytest.mark.parametrize("body", [b"no json", b"[1]"])
def test_an_answer_that_is_no_configuration_is_none(serve, body):
    with ControlClient(serve({"/server_info?config_format=json": (200, body)})) as control:
        assert control.server_info() is None
        assert control.metrics_text() == ""


def test_a_proxy_in_the_environment_is_not_used(engine, monkeypatch):
    url = engine()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    with ControlClient(url) as control:
        assert control.is_healthy()


METRICS = """\
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
vllm:kv_cache_usage_perc{{engine="1"}} 0.5
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{{engine="0"}} 10.0
vllm:prompt_tokens_total{{engine="1"}} 20.0
vllm:prompt_tokens_by_source_total{{engine="0",source="local"}} 999.0
vllm:generation_tokens_total{{engine="0"}} {generated}
vllm:generation_tokens_created{{engine="0"}} 1.7e+09
"""


def test_counters_of_several_engines_are_summed_and_the_fullest_cache_counts():
    counters = parse_counters(METRICS.format(generated="7.0"), at_ns=42)
    assert counters.at_ns == 42
    assert counters.prompt_tokens == 30
    assert counters.generation_tokens == 7
    assert counters.kv_cache_usage == 0.5
    assert counters.prefix_cache_hits is None


def test_a_counter_that_is_not_a_number_is_missing():
    assert parse_counters(METRICS.format(generated="NaN"), at_ns=0).generation_tokens is None


def test_names_of_older_versions_are_known():
    text = 'vllm:gpu_cache_usage_perc{model="m"} 0.125\nvllm:gpu_prefix_cache_hits_total{model="m"} 3.0\n'
    counters = parse_counters(text, at_ns=0)
    assert counters.kv_cache_usage == 0.125
    assert counters.prefix_cache_hits == 3


@given(st.text(max_size=100))
def test_whatever_a_server_publishes_reading_it_does_not_fail(text):
    parse_counters(f"vllm:prompt_tokens_total{text}\n{text}", at_ns=0)
