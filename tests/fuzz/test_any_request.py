"""What the contract's tests leave out of HTTP: bytes that are no JSON, foreign headers, deep and large bodies, events.

`tests/integration/api/test_contract.py` makes its requests from the document; these contradict it on purpose.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import redis
from api_server import JSON, served
from fuzzing import any_bytes, any_json, any_text, changed_keys, examples, state_of_all_keys
from hypothesis import example, given
from hypothesis import strategies as st

from allocator import AsyncPortAllocator, PoolSpec, PortAllocator
from allocator.api.access import Access
from allocator.api.application import create_app
from allocator.api.credentials import Scope, TokensFile, new_api_token, tokens_line
from allocator.api.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = PoolSpec(name="strange-requests", first=17_100, last=17_140, cooldown_ms=0)
TOKEN = new_api_token()
OPERATIONS = sorted(
    (method.upper(), path)
    for path, methods in create_app(AsyncPortAllocator.from_url("unix:///nowhere", pool=SPEC.name, host="web-1"))
    .openapi()["paths"]
    .items()
    for method in methods
    if path not in {"/v1/events", "/v1/fleet/changes"}
)
PARTS = st.sampled_from(["web-1", "17100", SPEC.name, "org-1", "email", "nobody", "99999", "-1"]) | any_text(
    max_size=20
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "Accept", "Allocator-Token", "Idempotency-Key", "Last-Event-ID", "X-Forwarded-For", "If-Match",
         "Origin", "Cookie"]
    ),
    st.sampled_from(["application/json", "text/html", "application/x-www-form-urlencoded", "x" * 5_000, "0" * 32, ""])
    | st.text("".join(map(chr, range(32, 127))), max_size=30).map(str.strip),
    max_size=3,
)  # fmt: skip


class Shortened(bytes):
    """Bytes whose picture is short: Hypothesis warns of pictures of 100,000 brackets, and tests fail on warnings."""

    def __repr__(self) -> str:
        return bytes.__repr__(self) if len(self) <= 200 else f"{bytes(self[:40])!r} and so on, {len(self)} bytes"


CLAIM = {"plugin": "email", "org": "org-1", "instance": 0, "port": 17_101, "ttl_s": 30, "labels": {"a": "b"}}
BODIES = st.one_of(
    any_bytes(),
    any_json().map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from([*CLAIM, "token", "state", "x"]), any_json(), max_size=3).map(
        lambda changes: json.dumps({**CLAIM, **changes}).encode()
    ),
    st.sampled_from(
        [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 10_000, b'{"plugin": "\\ud800"}', b"\xff", b"", b"{}", b"NaN"]
    ),
).map(Shortened)


@pytest.fixture(scope="module")
def url(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with PortAllocator.from_url(redis_url, pool=SPEC.name, host="web-1") as ports:
        ports.apply_pool(SPEC)
    allocator = AsyncPortAllocator.from_url(redis_url, pool=SPEC.name, host="web-1")
    tokens = tmp_path_factory.mktemp("requests") / "tokens"
    tokens.write_text(tokens_line("all", Scope.ADMIN, TOKEN))
    with served(create_app(allocator, access=Access(TokensFile(tokens)), limits=Limits(requests_per_s=0))) as found:
        yield found


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20, headers={"Authorization": f"Bearer {TOKEN}", **JSON}) as client:
        yield client


@pytest.fixture(scope="module")
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def check_answer(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.headers.get("content-type", "").startswith("application/problem"):
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["detail"].isprintable()
        assert len(problem["detail"]) < 1_000
    assert "Traceback" not in answer.text


def filled(path: str, parts: list[str]) -> str:
    text = iter(parts)
    return "/".join(
        quote(next(text, "x"), safe="", errors="surrogatepass") if part.startswith("{") else part
        for part in path.split("/")
    )


@given(
    operation=st.sampled_from(OPERATIONS),
    parts=st.lists(PARTS, max_size=3),
    query=st.dictionaries(
        st.sampled_from(["pool", "host", "org", "plugin", "limit", "wait_s", "x"]), PARTS, max_size=2
    ),
    headers=HEADERS,
    body=BODIES,
)
@example(operation=("POST", "/v1/leases"), parts=[], query={}, headers={}, body=Shortened(b"[" * 100_000))
@examples(80)
def test_any_request_is_answered_and_a_refused_one_changes_nothing(
    http: httpx.Client, client: redis.Redis, operation: Any, parts: Any, query: Any, headers: Any, body: bytes
) -> None:
    method, path = operation
    fields = {name: value.encode(errors="replace").decode() for name, value in query.items() if name != "wait_s"}
    before = state_of_all_keys(client)
    answer = http.request(method, filled(path, parts), params=fields, headers=headers, content=body)
    check_answer(answer)
    if 400 <= answer.status_code < 500:
        assert not changed_keys(client, before), (method, path, body[:200], answer.text)


CREDENTIALS = st.text("".join(map(chr, range(33, 127))), min_size=1, max_size=60)


@given(authorization=CREDENTIALS | st.sampled_from(["Bearer", "Basic eDp5"]))
@examples(15)
def test_any_credential_but_a_right_one_is_refused(url: str, client: redis.Redis, authorization: str) -> None:
    before = state_of_all_keys(client)
    for text in (authorization, f"Bearer {authorization}"):
        answer = httpx.post(f"{url}/v1/leases", json=CLAIM, headers={"Authorization": text})
        check_answer(answer)
        assert answer.status_code in {401, 403}
    assert not changed_keys(client, before)


POSITIONS = st.one_of(
    any_text(max_size=30),
    st.from_regex(r"[0-9]{1,25}-[0-9]{1,25}", fullmatch=True),
    st.sampled_from(["0-0", "18446744073709551615-18446744073709551615", "99999999999999999999-0", "1-"]),
)


@given(position=POSITIONS, in_header=st.booleans())
@example(position="9999999999999999999-9999999999999999999", in_header=False)
@example(position="18446744073709551616-0", in_header=True)
@examples(15)
def test_a_stream_from_any_position_begins_or_is_refused(http: httpx.Client, position: str, in_header: bool) -> None:
    text = position.encode(errors="replace").decode()
    plain = text.encode("ascii", "replace").decode()
    headers = {"Last-Event-ID": "".join(one for one in plain if one.isprintable()).strip()} if in_header else {}
    with http.stream("GET", "/v1/events", params={} if in_header else {"after": text}, headers=headers) as answer:
        assert answer.status_code in {200, 422}, answer.status_code
        if answer.status_code == 200:
            assert next(answer.iter_bytes()).startswith(b"retry: ")


WIRE = st.lists(
    any_bytes()
    | st.sampled_from(
        [b"GET / HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"Content-Length: 5\r\n", b"Content-Length: x\r\n",
         b"POST /v1/leases HTTP/1.1\r\n", b"Transfer-Encoding: chunked\r\n", b"A" * 70_000,
         b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    ),
    min_size=1, max_size=6,
).map(lambda parts: Shortened(b"".join(parts)))  # fmt: skip


@given(printed=WIRE)
@examples(15)
def test_any_bytes_on_the_wire_leave_the_server_answering(url: str, http: httpx.Client, printed: bytes) -> None:
    address = urlsplit(url)
    wire = socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=5)
    with wire, contextlib.suppress(OSError):
        wire.sendall(printed)
        wire.shutdown(socket.SHUT_WR)
    assert http.get("/healthz").status_code == 200
