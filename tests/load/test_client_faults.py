"""Where load clients go wrong: characters and reads, file limits, slow streams, proxies, TLS, and being starved."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from reference import MODEL, ReferenceServer, first_served, reference_server
from serving import TOKENS, small

from pytest_vllmperf.domain.records import LoadRun, RequestOutcome, latency_s
from pytest_vllmperf.domain.summary import summarize
from pytest_vllmperf.domain.workload import Workload
from pytest_vllmperf.errors import LoadProcessError
from pytest_vllmperf.load import target
from pytest_vllmperf.load.driver import run_load
from pytest_vllmperf.load.sse import EventReader
from pytest_vllmperf.load.target import proxy_for


def load(server: ReferenceServer, workload: Workload, **how: object) -> LoadRun:
    base_url = how.pop("base_url", server.base_url)
    return run_load(workload, base_url=base_url, model=MODEL, api_key=None, token_range=TOKENS, seed=1, **how)


# ---------------------------------------------------------------------- reads


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_of_four_bytes_may_be_cut_anywhere(cut: int) -> None:
    """H23."""
    event = 'data: {"choices":[{"index":0,"text":"🙂"}]}\n\n'.encode()
    place = event.index("🙂".encode()) + cut
    reader = EventReader()
    found = [*reader.feed(event[:place]), *reader.feed(event[place:])]
    assert [json.loads(data)["choices"][0]["text"] for data in found] == ["🙂"]


# ---------------------------------------------------------------------- many streams, slow streams


def test_a_thousand_streams_are_all_served() -> None:
    """H25: the limit on open files is raised as far as the system allows."""
    with reference_server("--ttft-ms", "300", "--tpot-ms", "50") as server:
        run = load(server, small(requests=1000, max_concurrency=1000, output_tokens=4, timeout_s=60.0))
    assert [record.outcome for record in run.records] == [RequestOutcome.SUCCESS] * 1000


def test_more_streams_than_the_system_allows_are_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """H25."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))\n"
        "from pytest_vllmperf.load.worker import _raise_file_limit\n"
        "_raise_file_limit(1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "max_concurrency=1000 needs as many open files, and this system allows 300 (RLIMIT_NOFILE)" in done.stderr
    assert "raise it with ulimit -Hn 1040, or ask for less concurrency" in done.stderr
    assert LoadProcessError.__name__ in done.stderr
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_slow_stream_that_moves_is_no_timeout_and_its_pace_is_true() -> None:
    """H18, H26: a token every two seconds is far apart enough for any idle limit to show."""
    with reference_server("--ttft-ms", "100", "--tpot-ms", "2000", "--keep-alive-s", "1") as server:
        run = load(server, small(requests=1, max_concurrency=1, output_tokens=3))
        truth = server.stamps()[0]["sent_ns"]
    record = run.records[0]
    assert record.succeeded
    true_s = (truth[-1] - truth[0]) * 1e-9 / 2
    assert latency_s(record, "tpot", open_loop=False) == pytest.approx(true_s, rel=0.02)
    assert true_s == pytest.approx(2.0, rel=0.02)


# ---------------------------------------------------------------------- proxies and TLS


def test_a_proxy_in_the_environment_never_sees_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """H27."""
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for url in ("http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:8000", "https://x.localhost"):
        assert proxy_for(url) is None
    assert proxy_for("https://llm.example.org") == "http://127.0.0.1:9"
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert proxy_for("https://llm.example.org") is None
    with reference_server() as server:
        assert all(record.succeeded for record in load(server, small()).records)


@contextmanager
def forwarding_proxy() -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that forwards what it is asked for; its URL, and the request lines it saw."""
    seen: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = [listener]

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        line, rest = head.split(b"\r\n", 1)
        seen.append(line.decode())
        method, url, version = line.decode().split(" ")
        tunnel = method == "CONNECT"
        where = url if tunnel else url.split("/")[2]
        host, port = where.rsplit(":", 1)
        upstream = socket.create_connection((host, int(port)))
        open_sockets.extend((client, upstream))
        if tunnel:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = "/" + url.split("/", 3)[3]
            upstream.sendall(f"{method} {path} {version}\r\n".encode() + rest)
        threading.Thread(target=pump, args=(upstream, client), daemon=True).start()
        pump(client, upstream)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        for each in open_sockets:
            each.close()


def through(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loopback go through the proxy after all: there is nothing else to reach here."""
    monkeypatch.setattr("pytest_vllmperf.load.driver.proxy_for", lambda _url: proxy)


def test_a_proxy_carries_the_same_records(monkeypatch: pytest.MonkeyPatch) -> None:
    with reference_server("--ttft-ms", "40", "--tpot-ms", "10") as server, forwarding_proxy() as (proxy, seen):
        through(proxy, monkeypatch)
        run = load(server, small(output_tokens=12))
    assert seen == [f"POST {server.base_url}/v1/completions HTTP/1.1"] * 6
    for record in run.records:
        assert record.outcome is RequestOutcome.SUCCESS
        assert (record.input_tokens, record.output_tokens, len(record.event_ns)) == (8, 12, 12)
        assert (latency_s(record, "ttft", open_loop=False) or 0) >= 0.04
        assert latency_s(record, "tpot", open_loop=False) == pytest.approx(0.010, rel=0.5)


@pytest.mark.parametrize("shape", ["in-band-error", "http-500", "cut", "no-done", "html", "reasoning"])
def test_faults_are_classed_alike_through_a_proxy(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with reference_server("--ttft-ms", "5", "--shape", shape) as server, forwarding_proxy() as (proxy, _):
        straight = load(server, small(requests=2, api="chat"))
        through(proxy, monkeypatch)
        proxied = load(server, small(requests=2, api="chat"))
    assert [record.outcome for record in proxied.records] == [record.outcome for record in straight.records]


def test_a_proxy_that_is_not_there_fails_each_request_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    through("http://127.0.0.1:9", monkeypatch)
    with reference_server() as server:
        run = load(server, small(requests=3, timeout_s=10.0))
    assert {record.outcome for record in run.records} == {RequestOutcome.CONNECTION_ERROR}
    assert all("through the proxy" in (record.detail or "") for record in run.records)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    files = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(folder / "key.pem"),
        "-out",
        str(folder / "c.pem"),
    ]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("way", ["straight", "proxy"])
def test_tls_carries_the_same_records(certificate: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--tls-cert", str(certificate / "c.pem"), "--tls-key", str(certificate / "key.pem"), "--ttft-ms", "30")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "c.pem"))
    with reference_server(*flags) as server, forwarding_proxy() as (proxy, seen):
        if way == "proxy":
            through(proxy, monkeypatch)
        run = load(server, small(), base_url=server.base_url.replace("http:", "https:"))
    assert {record.outcome for record in run.records} == {RequestOutcome.SUCCESS}
    assert {len(record.event_ns) for record in run.records} == {12}
    assert [line.split(" ")[0] for line in seen] == (["CONNECT"] * 6 if way == "proxy" else [])


def test_a_certificate_nobody_vouches_for_is_a_connection_error(certificate: Path) -> None:
    flags = ("--tls-cert", str(certificate / "c.pem"), "--tls-key", str(certificate / "key.pem"))
    with reference_server(*flags) as server:
        run = load(server, small(requests=2), base_url=server.base_url.replace("http:", "https:"))
    assert {record.outcome for record in run.records} == {RequestOutcome.CONNECTION_ERROR}
    assert all("certificate" in (record.detail or "").lower() for record in run.records)


# ---------------------------------------------------------------------- a client that waits for a core


def load_process() -> psutil.Process | None:
    """The load process of this one, once it is there."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "pytest_vllmperf.load.worker" in child.cmdline():
                return child
    return None


@contextmanager
def stopped_again_and_again(*, stopped_s: float, running_s: float) -> Iterator[None]:
    """The load process stands still for a while, over and over."""
    over = threading.Event()

    def stop() -> None:
        while not over.wait(running_s):
            process = load_process()
            if process is not None:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
                    over.wait(stopped_s)
                    process.resume()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def mean_s(stamps: list[dict[str, list[int]]]) -> float:
    """The true mean TTFT."""
    waits = [(truth["sent_ns"][0] - truth["arrived_ns"]) * 1e-9 for truth in stamps]
    return sum(waits) / len(waits)


def loaded_while_stopped(workload: Workload, *options: str) -> tuple[LoadRun, float]:
    """A run whose client stood still again and again, and its true mean TTFT."""
    with reference_server(*options, command=first_served(min(os.sched_getaffinity(0)))) as server:
        with stopped_again_and_again(stopped_s=0.15, running_s=0.05):
            run = load(server, workload)
        return run, mean_s(server.stamps())


def test_a_read_that_comes_late_is_no_late_arrival() -> None:
    """Tokens are further apart than the client stands still: the kernel's stamps are right however late it reads."""
    workload = small(requests=24, max_concurrency=8, output_tokens=4)
    run, truth_s = loaded_while_stopped(workload, "--ttft-ms", "200", "--tpot-ms", "250")
    summary = summarize(run, engine="e", model=MODEL, workload=workload)
    assert run.client.kernel_stamps
    assert (run.client.loop_lag_mean_ns or 0) > 0.02e9, "it did stand still"
    assert summary.metrics["ttft_mean"].value == pytest.approx(truth_s, rel=0.04)
    assert summary.metrics["tpot_mean"].value == pytest.approx(0.25, rel=0.04)
    assert summary.invalid == ()


def test_a_client_that_reads_several_tokens_at_once_says_that_its_latencies_are_its_own() -> None:
    workload = small(requests=48, max_concurrency=12, output_tokens=30)
    run, truth_s = loaded_while_stopped(workload, "--ttft-ms", "60", "--tpot-ms", "10")
    summary = summarize(run, engine="e", model=MODEL, workload=workload)
    assert summary.metrics["ttft_mean"].value > 1.05 * truth_s, "several tokens came before it looked"
    assert any("the client was the bottleneck" in reason for reason in summary.invalid), run.client


def test_a_server_that_sends_several_tokens_at_once_is_not_the_clients_fault() -> None:
    workload = small(requests=24, max_concurrency=6, output_tokens=24)
    with reference_server("--ttft-ms", "150", "--tpot-ms", "10", "--shape", "coalesced") as server:
        run = load(server, workload)
    summary = summarize(run, engine="e", model=MODEL, workload=workload)
    assert run.client.shared_reads > 0.5
    assert summary.facts["client_error_estimate"]["ttft_mean"] < 0.2, "on a machine in use some reads are late"


def test_what_no_kernel_stamped_is_as_late_as_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        reference_server(
            "--ttft-ms", "60", "--tpot-ms", "10", command=first_served(min(os.sched_getaffinity(0)))
        ) as server,
        forwarding_proxy() as (proxy, _),
    ):
        through(proxy, monkeypatch)
        with stopped_again_and_again(stopped_s=0.15, running_s=0.05):
            run = load(server, small(requests=48, max_concurrency=12, output_tokens=30))
    summary = summarize(run, engine="e", model=MODEL, workload=small(requests=48, max_concurrency=12))
    assert not run.client.kernel_stamps
    assert any("the client was the bottleneck" in reason for reason in summary.invalid), run.client


def test_everything_the_dispatcher_needs_of_a_carrier_is_there_in_both() -> None:
    from pytest_vllmperf.load.connection import Connection
    from pytest_vllmperf.load.proxied import ProxiedConnection

    asked = [name for name in vars(target.Carrier) if not name.startswith("_")]
    for kind in (Connection, ProxiedConnection):
        assert [name for name in asked if not callable(getattr(kind, name, None))] == []
