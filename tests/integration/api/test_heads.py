"""HEAD wherever GET works: the head of the same answer, at once, also of a stream that never ends."""

from __future__ import annotations

import socket

import pytest
from api_server import served

from allocator import AsyncPortAllocator
from allocator.api.application import create_app

PATHS = (
    *("/", "/page/page.js", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/pools", "/v1/leases", "/v1/fleet"),
    *("/v1/problems", "/v1/hosts", "/v1/hosts/nobody", "/v1/leases/web-1/1", "/v1/resolve/email/org-1", "/v1/samples"),
)


@pytest.mark.parametrize("path", PATHS)
def test_the_head_is_that_of_the_get(http, path: str) -> None:
    head, whole = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert "content-length" in head.headers


def test_each_route_that_can_be_read_has_its_head(http) -> None:
    paths = [path for path, methods in http.get("/openapi.json").json()["paths"].items() if "get" in methods]
    assert len(paths) > 15
    for path in paths:
        url = path.format(host="web-1", port=1, plugin="email", org="org-1")
        head = http.head(url)
        with http.stream("GET", url) as whole:
            kinds = (head.headers.get("content-type"), whole.headers.get("content-type"))
            assert (url, head.status_code, kinds[0]) == (url, whole.status_code, kinds[1])
        assert head.content == b""


@pytest.mark.parametrize("path", ["/v1/events", "/v1/fleet/changes"])
def test_the_head_of_a_stream_ends(http, path: str) -> None:
    answer = http.head(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


def test_a_connection_goes_on_after_a_head(redis_url: str, pool) -> None:
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
            for path in ("/healthz", "/v1/events", "/healthz"):
                one.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += one.recv(4_096)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert head.count(b"HTTP/1.1") == 1


def test_a_method_that_changes_something_has_no_head(http) -> None:
    assert http.head("/v1/leases/web-1/1/decline").status_code == 405
