"""Where requests go, and how they get there: straight, through TLS, or through a proxy."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from pytest_vllmperf.load.connection import Connection
from pytest_vllmperf.load.exchange import Exchange
from pytest_vllmperf.load.kernel_clock import KernelClock
from pytest_vllmperf.load.stamped_transport import StampedSockets, connect_stamped

__all__ = ["Carrier", "Target", "proxy_for"]


class Carrier(Protocol):
    """What carries one request at a time; :class:`~pytest_vllmperf.load.connection.Connection` says what is meant."""

    usable: bool
    idle_since_ns: int

    def send(self, exchange: Exchange) -> None:
        """Write the request; busy until it is over."""

    def drain(self) -> list[tuple[int, bytes]]:
        """Hand over what has been read so far, but for the last few reads."""

    def time_out(self, detail: str) -> None:
        """End the request under way as timed out."""

    def abandon(self) -> None:
        """Give up the request under way without a word."""

    def close(self) -> None:
        """Drop the connection."""


Ended = Callable[[Carrier, Exchange], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go.

    ``tls`` is None for plain HTTP, ``proxy`` None for the straight way, ``stamped`` None where arrivals bear no stamps
    of the kernel: what comes through TLS or a proxy is not what it stamps, and not every system stamps at all.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    proxy: str | None = None
    stamped: StampedSockets | None = None

    @property
    def clock(self) -> KernelClock | None:
        """What the stamps are put right by, where there are any."""
        return None if self.stamped is None else self.stamped.clock

    @classmethod
    def of(cls, base_url: str, *, proxy: str | None = None) -> Target:
        """Read a base URL such as ``http://127.0.0.1:8000``."""
        url = urlsplit(base_url)
        secure = url.scheme == "https"
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url {base_url!r} must look like http://host:port or https://host:port")
        tls = ssl.create_default_context() if secure else None
        clock = None if secure or proxy is not None else KernelClock()
        stamped = StampedSockets(clock) if clock is not None and clock.works else None
        return cls(host=url.hostname, port=url.port or (443 if secure else 80), tls=tls, proxy=proxy, stamped=stamped)

    async def connect(self, on_end: Ended) -> Carrier:
        """A connection of its own, ready to send.

        Raises:
            OSError: There is none to be had.
        """
        if self.proxy is not None:
            from pytest_vllmperf.load.proxied import ProxiedConnection

            return ProxiedConnection(self, on_end)
        if self.stamped is not None:
            stamped = Connection(on_end, self.stamped)
            await connect_stamped(self.host, self.port, stamped, self.stamped)
            return stamped
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(on_end), self.host, self.port, ssl=self.tls)
        return connection


def proxy_for(base_url: str) -> str | None:
    """The proxy the environment names for this URL (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``).

    Never one for this machine itself: a proxy must not see loopback traffic, whatever the environment says.
    """
    url = urlsplit(base_url)
    host = url.hostname or ""
    if host == "localhost" or host.endswith(".localhost") or _is_loopback(host):
        return None
    import urllib.request  # with what it imports 15 ms, in each load process, which never looks for a proxy

    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(host):
        return None
    return proxies.get(url.scheme) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
