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
"""Where pictures are fetched from, and where never."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recipes.serving import addresses
from recipes.serving.addresses import MAX_REDIRECTS, Fetcher, is_public
from recipes.serving.errors import RequestError


HOST, OTHER = "pictures.example", "elsewhere.example"
CONTENT = b"a picture" * 1000


class Site(ThreadingHTTPServer):
    """Answers and keeps the paths that it was asked for, with their Host."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), Page)

    def url(self, path: str, host: str = HOST) -> str:
        return f"http://{host}:{self.server_port}{path}"


class Page(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"].partition(":")[0]))
        name, _, rest = self.path.removeprefix("/").partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif name == "status":
            self.send_error(int(rest))
        elif name == "never":
            self.server.released.wait()
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while not self.server.released.is_set():
                    self.wfile.write(CONTENT)
            except OSError:  # its client has enough
                pass
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What hosts resolve to; 127.0.0.1 counts as public."""
    found = {HOST: ["127.0.0.1"], OTHER: ["127.0.0.1"]}

    async def resolve(host: str, port: int) -> list[str]:
        return found[host]

    monkeypatch.setattr(addresses, "resolve", resolve)
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    return found


def fetch(url: str, seconds: float = 60.0, max_bytes: int = 10**6) -> bytes:
    return asyncio.run(Fetcher(frozenset([HOST]), max_bytes, seconds).fetch(url))


@pytest.mark.parametrize(
    "address",
    """
    0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 127.0.0.1 127.1.2.3 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1
    192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 224.0.1.1 239.1.2.3 240.0.0.1 255.255.255.255
    :: ::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::1 100::1 2001::1 2001:db8::1
    2002:7f00:1::1 2002:808:808::1 fc00::1 fd12::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
    """.split(),
)
def test_addresses_that_only_the_server_reaches(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "172.15.0.1", "172.32.0.1", "2606:4700::1111"])
def test_public_addresses(address: str):
    assert is_public(address)


def test_picture_is_fetched(site: Site, names: dict[str, list[str]]):
    assert fetch(site.url("/a%20b.png?size=1&x=a%2Fb")) == CONTENT
    assert site.asked == [("/a%20b.png?size=1&x=a%2Fb", HOST)]


@pytest.mark.parametrize("url", ["http://{}/a.png", "HTTP://{}/a.png", "http://user:word@{}/a.png"])
def test_the_address_that_was_checked_is_connected_to(
    site: Site, monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]], url: str
):
    """No name is looked up a second time, when it could mean another address."""
    answers = [["127.0.0.1"]]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop()

    monkeypatch.setattr(addresses, "resolve", resolve)
    assert fetch(url.format(f"{HOST}:{site.server_port}")) == CONTENT
    assert site.asked == [("/a.png", HOST)] and answers == []


@pytest.mark.parametrize("found", [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::1", "127.0.0.1"], []])
def test_hosts_with_an_address_inside_are_refused(site: Site, names: dict[str, list[str]], found: list[str]):
    names[HOST] = found
    with pytest.raises(RequestError, match="is not on the public internet"):
        fetch(site.url("/a.png"))
    assert site.asked == []


def test_loopback_is_refused_though_it_is_allowed(site: Site):
    for host in ("127.0.0.1", "localhost"):
        fetcher = Fetcher(frozenset([host]), 10**6, 60.0)
        with pytest.raises(RequestError, match="is not on the public internet"):
            asyncio.run(fetcher.fetch(site.url("/a.png", host)))
    assert site.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.example/a.png",
        "http://a.pictures.example/a.png",
        "http://pictures.example./a.png",
        "http://pictures.example@elsewhere.example/a.png",
        "http://elsewhere.example#@pictures.example/a.png",
        "http://elsewhere.example\\@pictures.example/a.png",
        "http://elsewhere.example\n.pictures.example/a.png",
        "http://pictures.example:99999/a.png",
        "http://[::1/a.png",
        "http:///a.png",
        "http://p\u0131ctures.example/a.png",
        "ftp://pictures.example/a.png",
    ],
)
def test_other_hosts_and_schemes_are_refused(names: dict[str, list[str]], url: str):
    with pytest.raises(RequestError, match="hosts that this server allows|not a valid one"):
        fetch(url)


def test_redirects_are_followed_where_they_may_go(site: Site, names: dict[str, list[str]]):
    assert fetch(site.url("/to/" + site.url("/to//a.png"))) == CONTENT
    assert [path for path, _ in site.asked][-1] == "/a.png"


@pytest.mark.parametrize("path", ["/a.png", "/to/a.png"])
def test_redirects_to_other_hosts_are_refused(site: Site, names: dict[str, list[str]], path: str):
    with pytest.raises(RequestError, match="hosts that this server allows"):
        fetch(site.url("/to/" + site.url(path, OTHER)))
    assert [host for _, host in site.asked] == [HOST]


def test_redirects_to_addresses_inside_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]
):
    """Also where it is the same host, which means something else by now."""
    answers = [["10.0.0.1"], ["127.0.0.1"]]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop()

    monkeypatch.setattr(addresses, "resolve", resolve)
    with pytest.raises(RequestError, match="is not on the public internet"):
        fetch(site.url("/to//a.png"))
    assert len(site.asked) == 1


def test_redirects_in_a_circle_end(site: Site, names: dict[str, list[str]]):
    with pytest.raises(RequestError, match="redirects more than 3 times"):
        fetch(site.url("/to/"))
    assert len(site.asked) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("path", ["/status/404", "/status/500"])
def test_errors_of_the_host(site: Site, names: dict[str, list[str]], path: str):
    with pytest.raises(RequestError, match="answers with status"):
        fetch(site.url(path))


def test_host_that_is_not_there(site: Site, names: dict[str, list[str]]):
    with pytest.raises(RequestError, match="cannot be reached"):
        fetch(f"http://{HOST}:9/a.png")


def test_host_that_never_answers(site: Site, names: dict[str, list[str]]):
    with pytest.raises(RequestError, match="not there within 0.2 s"):
        fetch(site.url("/never"), seconds=0.2)


def test_picture_without_end(site: Site, names: dict[str, list[str]]):
    with pytest.raises(RequestError, match="more than 1,000,000 bytes") as caught:
        fetch(site.url("/endless"))
    assert caught.value.status == 413


def test_no_proxy_is_used(site: Site, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(site.url("/a.png")) == CONTENT
