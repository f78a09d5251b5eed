"""A chat endpoint on a real socket, answering what a function of the last user message says. Standard library only."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(kw_only=True)
class Reply:
    """One answer: the choice of a chat completion, or a bare status, or (``gate``) one that waits."""

    content: object = "The answer is 1."
    finish_reason: str = "stop"
    stop_reason: object = None
    reasoning: str | None = None
    status: int = 200
    raw: str | None = None
    gate: threading.Event | None = None
    input_tokens: int = 7
    output_tokens: int = 3

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw.encode()
        message = {"role": "assistant", "content": self.content, "reasoning": self.reasoning}
        choice = {"message": message, "finish_reason": self.finish_reason, "stop_reason": self.stop_reason}
        return json.dumps(
            {
                "choices": [choice],
                "usage": {"prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens},
            }
        ).encode()


def scored(body: dict, likelihood: Callable[[list[int], int], float] | None) -> bytes:
    """What vLLM answers to ``prompt_logprobs``: nothing for the first token, one entry for each other."""
    choice: dict[str, object] = {"text": "", "finish_reason": "length"}
    if likelihood is not None:
        ids = body["prompt"]
        entries = [{str(token): {"logprob": likelihood(ids, i), "rank": 1}} for i, token in enumerate(ids)]
        choice["prompt_logprobs"] = [None, *entries[1:]]
    return json.dumps({"choices": [choice]}).encode()


@dataclass
class ChatServer:
    """What the test sees: where it listens, what it was asked, how many were in flight at once."""

    url: str
    requests: list[dict] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def tokens_of(text: str) -> list[int]:
    """A tokenizer: words and single punctuation marks, each with the space before it."""
    return [sum(ord(c) * 31**i for i, c in enumerate(piece)) % 100_003 for piece in re.findall(r"\s*\w+|\s*\W", text)]


Likelihood = Callable[[list[int], int], float]
"""The logarithm of a token's probability, given all tokens and its position."""


@contextmanager
def chat_server(
    reply: Callable[[str], Reply],
    *,
    models: list[str] | None = None,
    tokenizes: bool = False,
    likelihood: Likelihood | None = None,
) -> Iterator[ChatServer]:
    """Serve until the block ends.

    Args:
        reply: Gets the text of the last user message, or the prompt.
        models: Names listed; None has no such endpoint.
        tokenizes: Whether ``/tokenize`` is there, as vLLM's; a chat is cut into tokens message by message.
        likelihood: Scores given token ids (``prompt_logprobs``); None leaves that out, as llama.cpp's server does.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms for a late ACK
        timeout = 10

        def do_GET(self) -> None:
            cards = {"data": [{"id": name} for name in models or ()]}
            self.send(404 if models is None else 200, json.dumps(cards).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                text = body.get("prompt") or "".join(m["content"] for m in body["messages"])
                self.send(
                    200 if tokenizes else 404,
                    json.dumps({"count": len(tokens_of(text)), "tokens": tokens_of(text)}).encode(),
                )
                return
            if "prompt_logprobs" in body:
                self.send(200, scored(body, likelihood))
                return
            with seen.lock:
                seen.requests.append(body)
                seen.authorizations.append(self.headers["Authorization"])
                seen.paths.append(self.path)
                seen.in_flight += 1
                seen.most_in_flight = max(seen.most_in_flight, seen.in_flight)
            answer = reply(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])
            if answer.gate is not None:
                answer.gate.wait(10)
            with seen.lock:
                seen.in_flight -= 1
            self.send(answer.status, answer.body())

        def send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is part of some tests."""

    with Server(("127.0.0.1", 0), Handler) as server:
        seen = ChatServer(url=f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join(10)
