"""Pages of other programs on this machine, in a browser that reaches a server without credentials."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from api_server import JSON, served

from allocator import AsyncPortAllocator, PortAllocator
from allocator.api.access import Access
from allocator.api.application import create_app
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def url(redis_url: str, pool) -> Iterator[str]:
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, access=Access(hosts=["127.0.0.1", "localhost", "[::1]"]))) as found:
        yield found


CHANGES = [
    ("POST", "/v1/hosts/web-1/drain"),
    ("POST", "/v1/hosts/web-1/cordon"),
    ("POST", "/v1/hosts/web-1/forget"),
    ("POST", "/v1/leases"),
    ("POST", "/v1/leases/web-1/{port}/decline"),
    ("POST", "/v1/leases/web-1/{port}/end"),
    ("PATCH", "/v1/leases/web-1/{port}"),
    ("DELETE", "/v1/leases/web-1/{port}"),
]
OTHERS = ["http://localhost:3000", "http://127.0.0.1:5560", "http://127.0.0.1", "null", "https://evil.example"]


def test_each_route_that_changes_something_is_tried(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    routes = {
        (method.upper(), path.replace("{host}", "web-1"))
        for path, methods in document["paths"].items()
        for method in methods
        if method != "get"
    }
    assert routes == set(CHANGES)


@pytest.mark.parametrize("origin", OTHERS)
def test_a_page_of_another_origin_changes_and_reads_nothing(url: str, ports: PortAllocator, origin: str) -> None:
    lease = ports.claim("email", org="org-1")
    for method, path in [*CHANGES, ("GET", "/v1/leases")]:
        answer = httpx.request(method, url + path.format(port=lease.port), headers={"Origin": origin, **JSON})
        assert (answer.status_code, answer.json()["type"]) == (421, "urn:portlease:problem:misdirected"), (method, path)
    (host,) = ports.hosts()
    assert (host.cordoned, host.draining, host.leases) == (False, False, 1)


def test_its_own_page_may_do_everything(url: str, ports: PortAllocator) -> None:
    ports.claim("email", org="org-1")
    own = {"Origin": url, "Sec-Fetch-Site": "same-origin", **JSON}
    assert httpx.post(f"{url}/v1/hosts/web-1/cordon", headers=own).json()["changed"] is True
    by_name = url.replace("127.0.0.1", "localhost")
    assert httpx.get(f"{by_name}/v1/leases", headers={"Origin": by_name.upper()}).status_code == 200


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_what_a_form_can_send_changes_nothing(
    url: str, ports: PortAllocator, method: str, path: str, media_type
) -> None:
    lease = ports.claim("email", org="org-1")
    headers = {"Allocator-Token": lease.token} | ({"Content-Type": media_type} if media_type else {})
    answer = httpx.request(method, url + path.format(port=lease.port), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:portlease:problem:media-type")
    assert "Content-Type: application/json" in answer.json()["detail"]
    (host,) = ports.hosts()
    assert (host.cordoned, host.draining, host.leases) == (False, False, 1)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_moves_no_turn_and_opens_no_stream(url: str, ports: PortAllocator, site: str) -> None:
    """An `<img>` of `http://localhost:3000` sends no Origin, and is of the same site as every port of this machine."""
    for instance in (1, 2):
        ports.renew(replace(ports.claim("email", org="org-1", instance=instance), state=LeaseState.READY), rewrite=True)
    turns = [httpx.get(f"{url}/v1/resolve/email/org-1").json()["instance"] for _ in range(2)]
    for path in ("/v1/resolve/email/org-1", "/v1/events", "/v1/fleet/changes"):
        answer = httpx.get(url + path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:portlease:problem:forbidden")
    assert httpx.get(f"{url}/v1/resolve/email/org-1").json()["instance"] == turns[0]
    assert httpx.get(f"{url}/v1/leases", headers={"Sec-Fetch-Site": site}).status_code == 200


def test_a_request_of_another_site_is_no_claim_either(url: str) -> None:
    headers = {"Sec-Fetch-Site": "same-site", **JSON}
    answer = httpx.post(f"{url}/v1/leases", json={"plugin": "email", "org": "org-1"}, headers=headers)
    assert answer.status_code == 403
