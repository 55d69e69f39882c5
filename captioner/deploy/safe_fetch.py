"""Images from addresses that strangers name: only from public hosts, whatever the names and redirects say."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

REDIRECTS = 3
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What older Pythons call global: protocol assignments, where clouds have their metadata; site-local addresses.
PRIVATE = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("fec0::/10"))


class Refused(Exception):
    """An address that is not fetched, or did not give an image; one line."""


def is_public(address: str) -> bool:
    """Whether an IP address, or the IPv4 address inside of it, belongs to the open internet."""
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


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to the very address that was judged: a name that answers differently the second time gains nothing."""

    def __init__(self) -> None:
        self.plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Refused(f"{host}: no such host") from None
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(is_public, addresses)):
            raise Refused(f"{host}: is not a public host")
        return await self.plain.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


async def fetch(url: str, most: int, timeout: float) -> bytes:
    """The content of an http or https address.

    Args:
        url: of a public host, on its usual port; it may redirect, up to REDIRECTS times, to another such.
        most: bytes.
        timeout: seconds of silence.

    Raises:
        Refused: any other address, or what did not come.
    """
    limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    try:
        async with httpcore.AsyncConnectionPool(ssl.create_default_context(), network_backend=_Guarded()) as pool:
            for _ in range(REDIRECTS + 1):
                parts = urlsplit(url)
                if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
                    raise Refused(f"{url[:200]}: expected http:// or https:// and a host")
                if parts.port not in (None, 80, 443):
                    raise Refused(f"{url[:200]}: only the ports 80 and 443 are allowed")
                async with pool.stream("GET", url, extensions={"timeout": limits}) as response:
                    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                    if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                        url = urljoin(url, headers[b"location"])
                        continue
                    if response.status != 200:
                        raise Refused(f"{url[:200]}: the host says {response.status}")
                    data = bytearray()
                    async for chunk in response.aiter_stream():
                        data += chunk
                        if len(data) > most:
                            raise Refused(f"{url[:200]}: more than {most:,} bytes")
                    return bytes(data)
        raise Refused(f"{url[:200]}: more than {REDIRECTS} redirects")
    except (
        httpcore.NetworkError,
        httpcore.TimeoutException,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise Refused(f"{url[:200]}: cannot be fetched ({type(error).__name__})") from None
    except (ValueError, TypeError):  # an address that is none: letters as a port, brackets that do not close, no ASCII
        raise Refused(f"{url[:200]}: is not an address") from None
