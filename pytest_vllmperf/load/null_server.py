"""A server that costs next to nothing, to see what the client alone can do: ``python -m …load.null_server``.

It answers every POST with a stream of ready-made one-token events, one each tick for every stream that is open, and
says on stdout which port it listens on. It ends with its stdin.
"""

from __future__ import annotations

import asyncio
import sys

__all__ = ["main"]

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"cmpl-00000000000000000000000000000000","object":"text_completion","created":1700000000,'
    b'"model":"null","choices":[{"index":0,"text":" tok","logprobs":null,"finish_reason":%b,"stop_reason":null}],'
    b'"usage":%b}\n\n'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_TOKEN = _chunk(_EVENT % (b"null", b"null"))


class _Stream(asyncio.Protocol):
    """One connection; whatever arrives is taken for the next request."""

    def __init__(self, open_streams: set[_Stream], tokens: int) -> None:
        self.transport: asyncio.Transport | None = None
        self.left = 0
        self._open = open_streams
        self._tokens = tokens

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclasses

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"POST") or self.transport is None:
            return
        self.left = self._tokens
        self.transport.write(_HEAD)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self.transport = None

    def tick(self) -> None:
        """Send the next event; the last one with usage and the end."""
        if self.transport is None:
            return
        self.left -= 1
        if self.left:
            self.transport.write(_TOKEN)
            return
        self._open.discard(self)
        usage = b'{"prompt_tokens":1,"total_tokens":%d,"completion_tokens":%d}' % (self._tokens + 1, self._tokens)
        end = _chunk(_EVENT % (b'"length"', usage)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.transport.write(end)


async def _serve(tokens: int, period_s: float) -> None:
    loop = asyncio.get_running_loop()
    open_streams: set[_Stream] = set()
    server = await loop.create_server(lambda: _Stream(open_streams, tokens), "127.0.0.1", 0)
    over = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    loop.add_reader(0, end)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    due = loop.time()
    while not over.done():
        due = max(due + period_s, loop.time())
        await asyncio.wait((over,), timeout=due - loop.time())
        for stream in tuple(open_streams):
            stream.tick()
    server.close()


def main() -> None:
    """``null_server TOKENS PERIOD_S``."""
    tokens, period_s = int(sys.argv[1]), float(sys.argv[2])
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(tokens, period_s))
        return
    uvloop.run(_serve(tokens, period_s))


if __name__ == "__main__":
    main()
