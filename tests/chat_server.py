"""A chat endpoint on a real socket, answering what a function of the last user message says. Standard library only."""

from __future__ import annotations

import json
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

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw.encode()
        message = {"role": "assistant", "content": self.content, "reasoning": self.reasoning}
        choice = {"message": message, "finish_reason": self.finish_reason, "stop_reason": self.stop_reason}
        return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


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


@contextmanager
def chat_server(reply: Callable[[str], Reply]) -> Iterator[ChatServer]:
    """Serve until the block ends; ``reply`` gets the text of the last user message."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with seen.lock:
                seen.requests.append(body)
                seen.authorizations.append(self.headers["Authorization"])
                seen.paths.append(self.path)
                seen.in_flight += 1
                seen.most_in_flight = max(seen.most_in_flight, seen.in_flight)
            answer = reply(body["messages"][-1]["content"])
            if answer.gate is not None:
                answer.gate.wait(10)
            with seen.lock:
                seen.in_flight -= 1
            data = answer.body()
            self.send_response(answer.status)
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
