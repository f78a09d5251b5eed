"""The control plane of a server: is it healthy, what does it serve, what do its counters say."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_vllmperf.domain.records import ServerCounters
from pytest_vllmperf.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import httpx

__all__ = ["ControlClient", "FirstToken", "NoAnswer", "RequestRefused", "parse_counters"]

_COUNTERS = {
    "generation_tokens": ("vllm:generation_tokens_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "prefix_cache_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "preemptions": ("vllm:num_preemptions_total",),
    "requests_finished": ("vllm:request_success_total",),
    "requests_waiting": ("vllm:num_requests_waiting",),
}
_CACHE_CONFIG = "vllm:cache_config_info"
_KV_CACHE_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_LATENCIES = {
    "ttft": ("vllm:time_to_first_token_seconds",),
    "itl": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    "queue": ("vllm:request_queue_time_seconds",),
    "prefill": ("vllm:request_prefill_time_seconds",),
    "decode": ("vllm:request_decode_time_seconds",),
}
"""Names differ between versions of vLLM; the first that is there counts."""
_EXCERPT = 500
_CLOSES_TIMEOUT_S = 30.0
_CLOSES_WITHIN_S = 0.25
_READINESS_REQUEST = {
    "prompt": "1 + 1 =",
    "max_tokens": 4,
    "temperature": 0.0,
    "ignore_eos": True,  # a model may find nothing to say
    "stream": True,
}


class RequestRefused(EngineError):
    """The server answered, and the answer is no: repeating the request changes nothing (status 4xx)."""


class NoAnswer(EngineError):
    """The server took the request and said nothing, for longer than one can wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """The readiness request: ``ttft_ns`` from sending it to its first token, and the text it gave."""

    ttft_ns: int
    text: str


class ControlClient:
    """Synchronous requests that measure nothing but the readiness request.

    Args:
        base_url: Such as ``http://127.0.0.1:8000``.
        api_key: Sent as a bearer token; None sends none.
        timeout_s: For connecting and for each read.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout_s: float = 10.0) -> None:
        import httpx

        self.base_url = base_url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.base_url,
            # A page of counters is packed where that is allowed, which costs the server more than sending it.
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {api_key}"} if api_key else {})},
            timeout=timeout_s,
            trust_env=False,  # a proxy must never see loopback traffic
            verify=base_url.startswith("https"),  # reading certificates takes longer than a health check
        )

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()

    def is_healthy(self, path: str = "/health") -> bool:
        """Whether ``path`` answers 200. vLLM says so as soon as nothing is known to be dead."""
        response = self._get(path)
        return response is not None and response.status_code == 200

    def is_refused(self, path: str = "/health") -> bool:
        """Whether nobody listens any more, or ``path`` answers that the server is broken (5xx).

        A server that is only slow does neither.
        """
        import httpx

        try:
            return self._client.get(path).status_code >= 500
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
            return True
        except httpx.HTTPError:
            return False

    def require_healthy(self, path: str = "/health") -> None:
        """Raise unless ``path`` answers 200.

        Raises:
            EngineError: It does not.
        """
        if not self.is_healthy(path):
            raise EngineError(f"{self.base_url}{path} does not answer 200: is the server up?")

    def models(self) -> tuple[str, ...]:
        """Names the server answers to.

        Raises:
            RequestRefused: It said no, 401 for a key it does not know.
            EngineError: It did not answer, or not with a list of models.
        """
        response = self._get("/v1/models")
        if response is None:
            raise EngineError(f"{self.base_url}/v1/models: no answer")
        if response.status_code != 200:
            raise self._refused("/v1/models", response.status_code, response.text)
        try:
            return tuple(str(entry["id"]) for entry in response.json()["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self.base_url}/v1/models: not a list of models: {response.text[:_EXCERPT]}") from error

    def require_model(self, name: str) -> None:
        """Raise unless the server answers to ``name``.

        Raises:
            RequestRefused: It serves other models.
            EngineError: As for :meth:`models`.
        """
        served = self.models()
        if name not in served:
            raise RequestRefused(
                f"{self.base_url}/v1/models lists {', '.join(served) or 'nothing'}, not {name!r}: "
                "set EngineConfig(served_model_name=…)"
            )

    def context_tokens(self, name: str) -> int | None:
        """How many tokens the context of the model served as ``name`` holds; None where the server does not tell."""
        return self._told_of(name, "max_model_len", "n_ctx")

    def vocabulary_tokens(self, name: str) -> int | None:
        """How many tokens the model served as ``name`` knows; None where the server does not tell, as vLLM."""
        return self._told_of(name, "vocab_size", "n_vocab")

    def _told_of(self, name: str, *keys: str) -> int | None:
        """A number ``/v1/models`` tells of a model: vLLM in its entry, llama.cpp's server in ``meta`` of it."""
        response = self._get("/v1/models")
        try:
            entries = [] if response is None else response.json()["data"]
            facts = next(({**(e.get("meta") or {}), **e} for e in entries if e.get("id") == name), {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        numbers = (facts.get(key) for key in keys)
        return next((n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)

    def version(self) -> str | None:
        """The server's version, None where it does not tell (only vLLM has ``/version``)."""
        response = self._get("/version")
        if response is None or response.status_code != 200:
            return None
        try:
            version = response.json().get("version")
        except (ValueError, AttributeError):
            return None
        return None if version is None else str(version)

    def first_token(self, model: str, *, timeout_s: float | None = None) -> FirstToken:
        """Stream one tiny completion; the time to its first token.

        The first event with text counts; where no event has any (a token may be half a character), the first
        event that carries a choice.

        Raises:
            RequestRefused: The server answered with a status of 400 to 499.
            NoAnswer: It said nothing for ``timeout_s``.
            EngineError: Any other failure: no connection, another status, an error inside the stream, no token.
        """
        import httpx

        body = {**_READINESS_REQUEST, "model": model}
        timeout = self._client.timeout if timeout_s is None else timeout_s
        sent_ns = time.monotonic_ns()
        first_ns: int | None = None
        first_text_ns: int | None = None
        text = ""
        try:
            with self._client.stream("POST", "/v1/completions", json=body, timeout=timeout) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise self._refused("/v1/completions", reply.status_code, reply.text)
                for piece in self._pieces(reply):
                    now_ns = time.monotonic_ns()
                    first_ns = first_ns or now_ns
                    if piece and not first_text_ns:
                        first_text_ns = now_ns
                    text += piece
        except httpx.TimeoutException as error:
            raise NoAnswer(f"{self.base_url}/v1/completions: {type(error).__name__}: {error}") from error
        except httpx.HTTPError as error:
            raise EngineError(f"{self.base_url}/v1/completions: {type(error).__name__}: {error}") from error
        arrived_ns = first_text_ns or first_ns
        if arrived_ns is None:
            raise EngineError(f"{self.base_url}/v1/completions: the stream ended without a token")
        return FirstToken(ttft_ns=arrived_ns - sent_ns, text=text)

    def keeps_connections(self, model: str) -> bool:
        """Whether a connection lives on after a streamed answer; True where that cannot be found out.

        llama.cpp's server promises it (``Keep-Alive: timeout=5``) and closes: a request written meanwhile is lost.
        """
        import http.client
        import select
        from urllib.parse import urlsplit

        url = urlsplit(self.base_url)
        if url.scheme != "http" or not url.hostname:
            return True
        connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=_CLOSES_TIMEOUT_S)
        body = json.dumps({**_READINESS_REQUEST, "model": model})
        try:
            key = self._client.headers.get("Authorization")
            headers = {"Content-Type": "application/json", **({"Authorization": key} if key else {})}
            connection.request("POST", "/v1/completions", body, headers)
            connection.getresponse().read()
            # None: it said so. Readable: it is closed, or out of step
            return connection.sock is not None and not select.select([connection.sock], [], [], _CLOSES_WITHIN_S)[0]
        except (OSError, http.client.HTTPException):
            return True
        finally:
            connection.close()

    def counters(self) -> ServerCounters:
        """The server's counters now. A server without ``/metrics`` gives None for each, never an error."""
        return parse_counters(self.metrics_text(), at_ns=time.monotonic_ns())

    def metrics_text(self) -> str:
        """``/metrics`` as it is, in Prometheus's format; empty where there is none."""
        response = self._get("/metrics")
        return response.text if response is not None and response.status_code == 200 else ""

    def server_info(self) -> dict[str, object] | None:
        """The server's whole configuration; None unless it is vLLM in development mode (``VLLM_SERVER_DEV_MODE=1``)."""
        response = self._get("/server_info?config_format=json")
        if response is None or response.status_code != 200:
            return None
        try:
            info = response.json()
        except ValueError:
            return None
        return info if isinstance(info, dict) else None

    def post(self, path: str, body: object = None) -> None:
        """Tell the server to do something, and wait until it has done it.

        Raises:
            RequestRefused: It said no; 404 where the route exists in development mode only.
            EngineError: It did not answer, or failed.
        """
        import httpx

        try:
            response = self._client.post(path, json=body) if body is not None else self._client.post(path)
        except httpx.HTTPError as error:
            raise EngineError(f"{self.base_url}{path}: {type(error).__name__}: {error}") from error
        if response.status_code >= 300:
            raise self._refused(path, response.status_code, response.text)

    def is_sleeping(self) -> bool | None:
        """Whether the engine sleeps; None where the server does not tell."""
        response = self._get("/is_sleeping")
        try:
            told = None if response is None or response.status_code != 200 else response.json().get("is_sleeping")
        except (ValueError, AttributeError):
            return None
        return told if isinstance(told, bool) else None

    def _get(self, path: str) -> httpx.Response | None:
        import httpx

        try:
            return self._client.get(path)
        except httpx.HTTPError:
            return None

    def _pieces(self, reply: httpx.Response) -> Iterator[str]:
        for line in reply.iter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            try:
                event: Any = json.loads(line[len("data:") :])
                if "error" in event:
                    raise EngineError(f"{self.base_url}/v1/completions: error in the stream: {line[:_EXCERPT]}")
                pieces = [str(choice.get("text") or "") for choice in event.get("choices", ())]
            except (ValueError, TypeError, AttributeError) as error:
                raise EngineError(f"{self.base_url}/v1/completions: not an event: {line[:_EXCERPT]}") from error
            yield from pieces

    def _refused(self, path: str, status: int, text: str) -> EngineError:
        kind = RequestRefused if 400 <= status < 500 else EngineError
        return kind(f"{self.base_url}{path}: HTTP {status}: {text[:_EXCERPT]}")


def parse_counters(text: str, *, at_ns: int) -> ServerCounters:
    """Read vLLM's counters from Prometheus text: counters are summed over engines, cache use is the highest."""
    from prometheus_client.parser import text_string_to_metric_families

    totals = (f"{name}_{end}" for choices in _LATENCIES.values() for name in choices for end in ("sum", "count"))
    counted = (name for choices in _COUNTERS.values() for name in choices)
    names = (*counted, *totals, *_KV_CACHE_USAGE, _CACHE_CONFIG)
    # The full page has a thousand lines, and this runs beside the load: parse only what is asked for.
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(names) and _name_of(line) in names)
    values: dict[str, list[float]] = {}
    block: int | None = None
    try:
        for family in text_string_to_metric_families(wanted + "\n"):
            for sample in family.samples:
                if sample.name == _CACHE_CONFIG and (told := sample.labels.get("block_size", "")).isdecimal():
                    block = int(told) or None
                if math.isfinite(sample.value):
                    values.setdefault(sample.name, []).append(sample.value)
    except ValueError:
        values = {}
    sums = {field: _first(values, choices) for field, choices in _COUNTERS.items()}
    usage = _first(values, _KV_CACHE_USAGE)
    return ServerCounters(
        at_ns=at_ns,
        **{field: None if found is None else int(sum(found)) for field, found in sums.items()},
        kv_cache_usage=None if usage is None else max(usage),
        cache_block_tokens=block,
        latencies=dict(_latencies(values)),
    )


def _name_of(line: str) -> str:
    return line[: line.find("{")] if "{" in line else line.partition(" ")[0]


def _latencies(values: dict[str, list[float]]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Seconds and observations of each histogram that is there, over all engines."""
    for field, choices in _LATENCIES.items():
        total_s = _first(values, tuple(f"{name}_sum" for name in choices))
        count = _first(values, tuple(f"{name}_count" for name in choices))
        if total_s is not None and count is not None:
            yield field, (sum(total_s), sum(count))


def _first(values: dict[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((values[name] for name in names if name in values), None)
