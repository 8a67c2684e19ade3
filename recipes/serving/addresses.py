# Copyright 2026 The AGE-VLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Fetching a picture from an address that a client names, without going where only the server can go.

The host has to be one of a list. Whatever its name resolves to is checked, and the address that was checked is the one that
is connected to; the same holds wherever it redirects to. No proxy is used.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import Iterable
from functools import cached_property
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore2

from recipes.serving.errors import RequestError


MAX_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)


def is_public(address: str) -> bool:
    """
    Whether an IP address is one of the public internet: not private, loopback, link-local, multicast or reserved, and not an
    IPv6 address that carries an IPv4 address to be sent on to.
    """
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and (ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip.is_site_local or ip.scope_id):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # of a stream
    return list(dict.fromkeys(sockaddr[0] for *_, sockaddr in found))


class PublicNetwork(httpcore2.AnyIOBackend):
    """Connects to public addresses alone."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[tuple] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise RequestError(f"The picture's host {host} is not on the public internet.")
        for address in addresses[:-1]:
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError:
                continue
        return await super().connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


class Fetcher:
    """
    Fetches pictures.

    Args:
        domains (`frozenset[str]`): The hosts that it may ask, in lower case.
        max_bytes (`int`): Of a picture.
        seconds (`float`): For a picture, from looking up its host to its last byte.
    """

    def __init__(self, domains: frozenset[str], max_bytes: int, seconds: float) -> None:
        self.domains, self.max_bytes, self.seconds = domains, max_bytes, seconds

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    async def fetch(self, url: str) -> bytes:
        """
        The bytes at an http(s) address.

        Raises:
            RequestError: If it may not be asked, does not answer in time or with a picture, or is too large.
        """
        try:
            async with asyncio.timeout(self.seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    content, location = await self._get(self._checked(url))
                    if location is None:
                        return content
                    url = urljoin(url, location)
        except TimeoutError as error:
            raise RequestError(f"The picture was not there within {self.seconds:g} s.") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as error:
            raise RequestError("The picture's address cannot be reached.") from error
        raise RequestError(f"The picture's address redirects more than {MAX_REDIRECTS} times.")

    def _checked(self, url: str) -> SplitResult:
        """The parts of an address that may be asked."""
        try:
            if not url.isprintable() or " " in url or "\\" in url:  # parsers differ in what they make of those
                raise ValueError("it has characters that addresses do not have")
            parts = urlsplit(url)
            parts.port  # noqa: B018 (raises if it is none)
            host = parts.hostname or ""
            host.encode("ascii")
        except ValueError as error:
            raise RequestError("The picture's address is not a valid one.") from error
        if parts.scheme not in PORTS or host not in self.domains:
            allowed = ", ".join(sorted(self.domains)) or "none"
            raise RequestError(
                f"Pictures are fetched by http or https from hosts that this server allows ({allowed}). Send the picture "
                "itself, as a data URL."
            )
        return parts

    async def _get(self, parts: SplitResult) -> tuple[bytes, str | None]:
        """The bytes of an answer, or where it redirects to."""
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        url = httpcore2.URL(
            scheme=parts.scheme.encode(),
            host=parts.hostname.encode(),
            port=parts.port or PORTS[parts.scheme],
            target=target.encode(),
        )
        headers = {"Host": parts.netloc.rpartition("@")[2], "Accept": "image/*", "Accept-Encoding": "identity"}
        pool = httpcore2.AsyncConnectionPool(ssl_context=self._ssl_context, network_backend=PublicNetwork())
        async with pool, pool.stream("GET", url, headers=headers) as response:
            if response.status in REDIRECTS:
                location = dict(response.headers).get(b"location") or dict(response.headers).get(b"Location")
                return b"", (location or b"").decode("latin-1")
            if response.status != 200:
                raise RequestError(f"The picture's address answers with status {response.status}.")
            content = bytearray()
            async for piece in response.aiter_stream():
                content += piece
                if len(content) > self.max_bytes:
                    raise RequestError(f"The picture has more than {self.max_bytes:,} bytes.", status=413)
            return bytes(content), None
