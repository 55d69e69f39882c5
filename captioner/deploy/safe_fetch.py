"""Fetch images from untrusted addresses: from public hosts only, also after name resolution and redirects."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

REDIRECTS = 3
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Global to older Pythons: protocol assignments, where clouds have their metadata; site-local addresses.
PRIVATE = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("fec0::/10"))

FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.UnsupportedProtocol)


class Refused(Exception):
    """An address that is not allowed or has no content; one line."""


def is_public(address: str) -> bool:
    """Whether an IP address, and an IPv4 address embedded in it, belongs to the public internet."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in NAT64:
            inner = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)  # type: ignore[assignment]
        if inner is not None and not is_public(str(inner)):
            return False
        if ip.ipv4_mapped:
            return True
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in PRIVATE))


class _PublicOnly(httpcore.AsyncNetworkBackend):
    """Resolves a name once and connects to an address that was checked, so a second resolution is never used."""

    def __init__(self) -> None:
        self.network = httpcore.AnyIOBackend()

    async def connect_tcp(  # type: ignore[override]
        self, host: str, port: int, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Refused(f"{host}: no such host") from None
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(is_public, addresses)):
            raise Refused(f"{host}: is not a public host")
        return await self.network.connect_tcp(addresses[0], port, **options)


async def fetch(url: str, max_bytes: int, timeout: float) -> bytes:
    """The content, at most `max_bytes`, of an http or https address of a public host, on port 80 or 443.

    It may redirect up to REDIRECTS times, to another such address. `timeout` is in seconds without any data.

    Raises:
        Refused: any other address, or no content.
    """
    try:
        async with httpcore.AsyncConnectionPool(ssl.create_default_context(), network_backend=_PublicOnly()) as pool:
            for _ in range(REDIRECTS + 1):
                redirect, content = await _request(pool, url, max_bytes, timeout)
                if redirect is None:
                    return content
                url = redirect
        raise Refused(f"{url[:200]}: more than {REDIRECTS} redirects")
    except FAILURES as error:
        raise Refused(f"{url[:200]}: cannot be fetched ({type(error).__name__})") from None
    except (ValueError, TypeError):  # letters as a port, brackets that do not close, characters outside ASCII
        raise Refused(f"{url[:200]}: is not an address") from None


async def _request(
    pool: httpcore.AsyncConnectionPool, url: str, max_bytes: int, timeout: float
) -> tuple[str | None, bytes]:
    """The address that a response redirects to, or None and its content."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise Refused(f"{url[:200]}: expected http:// or https:// and a host")
    if parts.port not in (None, 80, 443):
        raise Refused(f"{url[:200]}: only the ports 80 and 443 are allowed")
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    async with pool.stream("GET", url, extensions={"timeout": timeouts}) as response:
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
            return urljoin(url, headers[b"location"]), b""
        if response.status != 200:
            raise Refused(f"{url[:200]}: the host answers with status {response.status}")
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > max_bytes:
                raise Refused(f"{url[:200]}: more than {max_bytes:,} bytes")
        return None, bytes(data)
