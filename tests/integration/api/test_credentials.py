"""A reader's, a holder's and an admin's credentials, each tried against every route that the server has."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from api_server import JSON, served

from allocator import AsyncPortAllocator, PortAllocator
from allocator.api.access import Access
from allocator.api.application import create_app
from allocator.api.credentials import Scope, TokensFile, new_api_token, tokens_line
from allocator.model.states import LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEEDED = {
    ("POST", "/v1/leases"): Scope.LEASE,
    ("GET", "/v1/leases"): Scope.READ,
    ("GET", "/v1/leases/{host}/{port}"): Scope.READ,
    ("GET", "/v1/leases/{host}/{port}/events"): Scope.READ,
    ("PATCH", "/v1/leases/{host}/{port}"): Scope.LEASE,
    ("DELETE", "/v1/leases/{host}/{port}"): Scope.LEASE,
    ("POST", "/v1/leases/{host}/{port}/decline"): Scope.LEASE,
    ("POST", "/v1/leases/{host}/{port}/end"): Scope.FORCE,
    ("GET", "/v1/resolve/{plugin}/{org}"): Scope.READ,
    ("GET", "/v1/pools"): Scope.READ,
    ("GET", "/v1/hosts"): Scope.READ,
    ("GET", "/v1/hosts/{host}"): Scope.READ,
    ("POST", "/v1/hosts/{host}/cordon"): Scope.ADMIN,
    ("POST", "/v1/hosts/{host}/drain"): Scope.ADMIN,
    ("POST", "/v1/hosts/{host}/forget"): Scope.FORCE,
    ("GET", "/v1/fleet"): Scope.READ,
    ("GET", "/v1/fleet/changes"): Scope.READ,
    ("GET", "/v1/problems"): Scope.READ,
    ("GET", "/v1/search"): Scope.READ,
    ("GET", "/v1/services"): Scope.READ,
    ("GET", "/v1/drift"): Scope.READ,
    ("GET", "/v1/events"): Scope.READ,
    ("GET", "/v1/samples"): Scope.READ,
    ("GET", "/v1/prometheus/targets"): Scope.READ,
    ("GET", "/metrics"): Scope.READ,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
}
"""What each route needs; None is for routes that everybody may call."""


@pytest.fixture
def guarded(redis_url: str, pool, tmp_path: Path) -> Iterator[tuple[str, dict[Scope, str]]]:
    tokens = {scope: new_api_token() for scope in Scope}
    (tmp_path / "tokens").write_text("\n".join(tokens_line(f"a-{scope}", scope, tokens[scope]) for scope in Scope))
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, access=Access(TokensFile(tmp_path / "tokens")))) as url:
        yield url, tokens


def call(url: str, method: str, path: str, token: str | None, port: int) -> int:
    filled = re.sub(r"\{(\w+)\}", lambda name: {"port": str(port), "host": "web-1"}.get(name[1], "x"), path)
    headers = {"Allocator-Token": "f" * 32, **JSON}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    body = {"plugin": "email", "org": "org-1"} if (method, path) == ("POST", "/v1/leases") else None
    with httpx.Client(base_url=url) as http, http.stream(method, filled, headers=headers, json=body) as answer:
        return answer.status_code


def test_every_route_wants_exactly_its_scope(guarded, ports: PortAllocator, pool) -> None:
    url, tokens = guarded
    document = httpx.get(f"{url}/openapi.json").json()
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert routes == set(NEEDED)
    lease = ports.claim("stripe", org="org-1", ttl="10m")
    for (method, path), needed in NEEDED.items():
        for token, scope in [(None, None), *((tokens[scope], scope) for scope in Scope)]:
            status = call(url, method, path, token, lease.port)
            where = f"{method} {path} with {scope}"
            if needed is None:
                assert status == 200, where
            elif scope is None:
                assert status == 401, where
            elif scope.covers(needed):
                assert status not in {401, 403}, where
            else:
                assert status == 403, where
    assert [one.fence for one in ports.leases(host="web-1") if one.port == lease.port] == [lease.fence]


def test_an_unknown_token_opens_nothing(guarded) -> None:
    url, _ = guarded
    for name in (new_api_token(), "x", "a b", "Bearer", "é"):
        answer = httpx.get(f"{url}/v1/leases", headers={"Authorization": f"Bearer {name}".encode("latin-1")})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_broken_tokens_file_is_written_to_the_log_once_and_to_no_caller(guarded, tmp_path: Path, caplog) -> None:
    url, tokens = guarded
    file = tmp_path / "tokens"
    good = file.read_text()

    def refused() -> list[str]:
        caplog.clear()
        for token in (new_api_token(), tokens[Scope.READ], tokens[Scope.ADMIN]):
            answer = httpx.get(f"{url}/v1/leases", headers={"Authorization": f"Bearer {token}"})
            assert (answer.status_code, answer.json()["type"]) == (500, "urn:portlease:problem:configuration")
            assert not re.search(r"/|line|directory|credential,", answer.json()["detail"])
            assert str(tmp_path) not in answer.text
        assert httpx.get(f"{url}/v1/leases").status_code == 401
        return [record.getMessage() for record in caplog.records if record.name == "allocator.api"]

    for _ in range(2):
        file.write_text(f"{good}\none two\n")
        (printed,) = refused()
        assert f"{file}: line 5 is not a credential" in printed
        file.unlink()
        (printed,) = refused()
        assert f"the tokens file {file} cannot be read (No such file or directory)" in printed
        file.write_text(good)
        known = {"Authorization": f"Bearer {tokens[Scope.READ]}"}
        assert httpx.get(f"{url}/v1/leases", headers=known).status_code == 200


def test_the_page_and_the_document_hold_no_data_and_need_no_credentials(guarded) -> None:
    url, _ = guarded
    for path in ("/", "/page/page.js", "/page/page.css", "/openapi.json"):
        assert httpx.get(url + path).status_code == 200


def test_a_request_that_is_too_large_is_refused(guarded) -> None:
    url, tokens = guarded
    headers = {"Authorization": f"Bearer {tokens[Scope.LEASE]}", "Content-Type": "application/json"}

    def parts() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 1_000

    def one_part() -> Iterator[bytes]:
        yield b" " * 65_537

    many_times_what_sockets_hold = b" " * 30_000_000
    for body in (b" " * 200_000, parts(), one_part(), many_times_what_sockets_hold):
        answer = httpx.post(f"{url}/v1/leases", content=body, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:portlease:problem:too-large")


def statuses(url: str, count: int, headers: dict[str, str] | None = None) -> list[int]:
    return [httpx.get(f"{url}/healthz", headers=headers).status_code for _ in range(count)]


def test_a_caller_that_asks_too_often_waits_and_others_do_not(redis_url: str, pool, tmp_path: Path) -> None:
    from allocator.api.limits import Limits

    one, other = new_api_token(), new_api_token()
    lines = [tokens_line("one", Scope.READ, one), tokens_line("other", Scope.READ, other)]
    (tmp_path / "tokens").write_text("\n".join(lines))
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    access = Access(TokensFile(tmp_path / "tokens"))
    with served(create_app(allocator, limits=Limits(requests_per_s=0.001, burst=3), access=access)) as url:
        assert statuses(url, 4, {"Authorization": f"Bearer {one}"}) == [200, 200, 200, 429]
        assert statuses(url, 1, {"Authorization": f"bearer   {one}"}) == [429]
        assert statuses(url, 1, {"Authorization": f"Bearer {other}"}) == [200]
        assert int(httpx.get(f"{url}/healthz", headers={"Authorization": f"Bearer {one}"}).headers["Retry-After"]) > 0
        made_up = [statuses(url, 1, {"Authorization": f"Bearer {new_api_token()}"})[0] for _ in range(5)]
        assert made_up == [200, 200, 200, 429, 429]
        assert statuses(url, 1) == [429]


def test_without_credentials_no_header_is_another_caller(redis_url: str, pool) -> None:
    from allocator.api.limits import Limits

    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, limits=Limits(requests_per_s=0.001, burst=3))) as url:
        headers = [{"Authorization": f"Bearer {number}"} for number in range(5)]
        assert [statuses(url, 1, one)[0] for one in headers] == [200, 200, 200, 429, 429]


@pytest.fixture
def two_pools(redis_url: str, pool, ports: PortAllocator, tmp_path: Path) -> Iterator[tuple[str, str, str, str]]:
    """A server of one pool whose Redis has another, with a credential for that one alone: URL, token, both names."""
    other = replace(pool, name=f"{pool.name}-b", first=pool.first + 2_000, last=pool.last + 2_000)
    ports.apply_pool(other)
    token = new_api_token()
    (tmp_path / "tokens").write_text(tokens_line("b", Scope.ADMIN, token, [other.name]))
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, access=Access(TokensFile(tmp_path / "tokens")))) as url:
        yield url, token, pool.name, other.name


def test_a_credential_for_one_pool_opens_no_route_of_another(two_pools, ports: PortAllocator) -> None:
    url, token, pool, other = two_pools
    lease = ports.claim("email", org="org-secret")
    for method, path in [one for one, scope in NEEDED.items() if scope]:
        if (method, path) in {("POST", "/v1/leases"), ("GET", "/v1/pools"), ("GET", "/metrics")}:
            continue
        for named in ("", f"?pool={pool}", f"?pool={other}&pool={pool}"):
            assert call(url, method, path + named, token, lease.port) == 403, (method, path, named)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as http:
        body = {"plugin": "email", "org": "org-1"}
        assert http.post("/v1/leases", json=body).status_code == 403
        assert http.post("/v1/leases", json={**body, "pool": pool}).status_code == 403
        assert http.post("/v1/leases", json={**body, "pool": other}).status_code == 201
        assert [one["name"] for one in http.get("/v1/pools").json()] == [other]
        assert http.get("/v1/leases", params={"pool": other}).json()["leases"][0]["pool"] == other
        metrics = http.get("/metrics").text
        assert f'pool="{other}"' in metrics
        assert f'pool="{pool}"' not in metrics
        assert "org-secret" not in metrics
    assert [one.fence for one in ports.leases()] == [lease.fence]


def test_no_route_answers_a_credential_for_one_pool_with_anything_of_another(
    two_pools, ports: PortAllocator, redis_url: str
) -> None:
    url, token, _, other = two_pools
    ports.claim("email", org="org-secret", labels={"team": "secret"})
    with PortAllocator.from_url(redis_url, pool=other, host="web-2") as theirs:
        lease = theirs.claim("email", org="org-theirs")
        theirs.renew(replace(lease, state=LeaseState.READY), rewrite=True)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=20) as http:
        for method, path in NEEDED:
            if method != "GET" or path.startswith(("/healthz", "/readyz")):
                continue
            filled = path.format(host="web-2", port=lease.port, plugin="email", org="org-theirs")
            with http.stream(
                "GET", filled, params={"pool": other, "q": "org-"} | ({"after": "1-0"} if path == "/v1/events" else {})
            ) as answer:
                assert answer.status_code == (403 if path == "/v1/drift" else 200), (path, answer.read())
                is_stream = answer.headers["content-type"].startswith("text/event-stream")
                text = stream_until(answer, "org-theirs" if path == "/v1/events" else "web-2") if is_stream else ""
                text += "" if is_stream else answer.read().decode()
            assert "secret" not in text, path
            assert "web-1" not in text, path


def stream_until(answer: httpx.Response, name: str) -> str:
    """Return what a stream sent until a word was in it."""
    text = ""
    for piece in answer.iter_text():
        text += piece
        if name in text:
            return text
    raise AssertionError(text)


@pytest.mark.parametrize("end", ["pools=", "pools=a,,b", "pools=a b", "pool=a", "a", "pools=../a"])
def test_pools_that_cannot_be_right_make_no_credential_for_all(tmp_path: Path, end: str) -> None:
    from allocator.model.errors import ConfigurationError

    file = tmp_path / "tokens"
    file.write_text(f"{tokens_line('one', Scope.READ, 'x')} {end}")
    with pytest.raises(ConfigurationError, match="line 1 is not a credential"):
        TokensFile(file).load()


def test_metrics_hold_no_token_and_no_organisation(guarded, ports: PortAllocator, pool) -> None:
    url, tokens = guarded
    headers = {"Authorization": f"Bearer {tokens[Scope.ADMIN]}"}
    body = {"plugin": "email", "org": "org-secret"}
    lease = httpx.post(f"{url}/v1/leases", json=body, headers=headers)
    httpx.post(f"{url}/v1/leases", json={**body, "pool": "made-up"}, headers=headers)
    httpx.get(f"{url}/no/such/{'x' * 50}", headers=headers)
    text = httpx.get(f"{url}/metrics", headers=headers).text
    assert f'allocator_claims_total{{outcome="ok",pool="{pool.name}"}} 1.0' in text
    assert f'allocator_leases{{host="web-1",pool="{pool.name}",state="starting"}} 1.0' in text
    assert f'allocator_pool_ports{{host="web-1",pool="{pool.name}"}} 44.0' in text
    assert "allocator_redis_up 1.0" in text
    for name in ("org-secret", "made-up", "xxxxx", lease.headers["Allocator-Token"], *tokens.values()):
        assert name not in text
