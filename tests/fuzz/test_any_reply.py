"""Whatever a server answers: a value, or an error of ours in one line, after a bounded time and in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fuzzing import accepted, any_bytes, any_json, check_refusal, examples
from hypothesis import example, given
from hypothesis import strategies as st
from scripted_redis import claim, claim_several, make_context

from allocator import AsyncPortAllocator, Lease, PortAllocator
from allocator.client.aio import drive_async
from allocator.client.blocking import drive
from allocator.kernel.answers import UnseenAnswers
from allocator.model.errors import AllocatorError, StoreUnavailableError
from allocator.model.names import WorkerId
from allocator.model.pools import PoolSpec
from allocator.operations import find, hosts, lead, listing, queue, renew, resolve
from allocator.operations.attempt import ClaimRequest, Waiting
from allocator.operations.context import check_pool, read_pool
from allocator.operations.end import decline, fail, release
from allocator.operations.pools import apply_pool
from allocator.protocol.replies import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator.operations.steps import Operation

WORKER = WorkerId("org-1", "email")
TOKEN = "0" * 32
HELD = Lease(pool="p", host="web-1", port=110, worker=WORKER, fence=1, ttl_ms=30_000, granted_at=1.0, expires_at=2.0,
             token=TOKEN)  # fmt: skip
POOL = PoolSpec(name="p", first=100, last=120)
LIMITED = replace(POOL, max_per_org=1)
REQUEST = ClaimRequest(pool="p", worker=WORKER, token=TOKEN)
LEASE_TEXT = json.dumps(
    {
        "fence": 1,
        "state": "ready",
        "worker": "org-1/email#0",
        "host": "web-1",
        "port": 110,
        "granted_at": 1,
        "ttl_ms": 9,
    }
).encode()
REPLIES_A_CALL = 60
"""After so many calls the server is away: what asks on and on would be another mistake than reading badly."""


def known_context() -> Any:
    context = make_context()
    context.rules["p"] = POOL
    return context


OPERATIONS: dict[str, Callable[[], Operation[Any]]] = {
    "claim": lambda: claim(known_context(), REQUEST),
    "claim in a pool that was never read": lambda: claim(make_context(), REQUEST),
    "claim a port": lambda: claim(known_context(), replace(REQUEST, port=110)),
    "claim with a copy": lambda: claim(copying_context(), REQUEST),
    "claim several": lambda: claim_several(
        known_context(), REQUEST, ("http", "debug"), contiguous=False, tokens=(TOKEN, "1" * 32)
    ),
    "renew": lambda: renew.renew(known_context(), [HELD, replace(HELD, port=111)]),
    "rewrite": lambda: renew.renew(known_context(), [HELD], rewrite=True),
    "release": lambda: release(known_context(), [HELD]),
    "decline": lambda: decline(known_context(), [HELD]),
    "fail": lambda: fail(known_context(), HELD, "why"),
    "read a pool": lambda: read_pool("p"),
    "apply a pool": lambda: apply_pool(LIMITED),
    "check a pool": lambda: check_pool("p"),
    "spaces": lambda: listing.namespaces("p"),
    "ports": lambda: listing.ports("p", "web-1"),
    "port": lambda: listing.port_view("p", "web-1", 110),
    "leases": lambda: listing.leases("p"),
    "hosts": lambda: listing.hosts("p"),
    "host identity": lambda: listing.host_identity("p", "web-1"),
    "ports and their quarantine": lambda: listing.ports("p", "web-1", quarantine=True),
    "spaces with ports": lambda: listing.port_namespaces(POOL),
    "newest event": lambda: listing.newest_event("p"),
    "cordon": lambda: listing.cordon("p", "web-1", on=True),
    "reap": lambda: listing.reap("p"),
    "register": lambda: hosts.register(known_context(), "p"),
    "drain": lambda: hosts.drain("p", "web-1"),
    "forget": lambda: hosts.forget("p", "web-1"),
    "place": lambda: hosts.place("p", WORKER, spread="org"),
    "find": lambda: find.find(POOL, [WORKER]),
    "lead": lambda: lead.take_leadership("p", token=TOKEN, ttl_ms=1_000, holder="me"),
    "give up": lambda: lead.give_up_leadership("p", TOKEN),
    "restore": lambda: lead.restore(POOL, [lead.Remembered(WORKER, "web-1", 110, 1)], 1_000),
    "resolve": lambda: resolve.resolve(make_context(), "p", "email", "org-1"),
    "endpoints": lambda: resolve.endpoints("p", "email", "org-1"),
    "join": lambda: queue.join(known_context(), Waiting.of(REQUEST, "ticket")),
}  # fmt: skip


def copying_context() -> Any:
    context = make_context()
    context.rules["p"] = replace(POOL, durability="replica")
    return context


ATOMS = st.one_of(
    st.sampled_from([str(code).encode() for code in Reply]),
    st.sampled_from(
        [LEASE_TEXT, POOL.rules.encode(), b"rules", b"dynamic", b"100-120", b"identity", b"m b n !a", b"inf"]
    ),
    st.integers(-2, 2_000_000_000_000),
    st.sampled_from([2**63 - 1, -(2**63), b"1e400", b"nan", b"-1", b"0", b"110", b"9" * 5_000, b"[" * 100_000]),
    any_bytes(),
    st.none(),
    any_json().map(lambda value: json.dumps(value, skipkeys=True).encode()),
)
REPLIES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=8), max_leaves=25)


@st.composite
def mutated_lease(draw: st.DrawFn) -> bytes:
    fields = json.loads(LEASE_TEXT) | draw(
        st.dictionaries(
            st.sampled_from(["fence", "state", "worker", "host", "port", "granted_at", "ttl_ms", "pid", "restarts",
                             "labels", "last_error", "boot"]),
            any_json(),
            max_size=3,
        )
    )  # fmt: skip
    return json.dumps(fields).encode()


@st.composite
def nearly_right(draw: st.DrawFn) -> list[Any]:
    """A reply as a script gives it, here and there something else in it."""
    code = draw(st.sampled_from([str(code).encode() for code in Reply]))
    name = st.one_of(st.just(LEASE_TEXT), mutated_lease(), st.integers(0, 2_000_000_000_000), ATOMS)
    return [*([code] if draw(st.booleans()) else []), *draw(st.lists(name, max_size=8))]


@st.composite
def pool_fields(draw: st.DrawFn) -> list[Any]:
    """The fields of a pool's hash, some of them garbled."""
    fields: dict[str, Any] = LIMITED.as_fields() | {"bands": "110-112:email", "conventional:email": "100"}
    garbled = st.one_of(
        ATOMS,
        st.sampled_from([LIMITED.rules.replace("=", "==", 1), LIMITED.rules.replace("100", "x" * 5_000), "1-2:a b"]),
    )
    fields |= draw(
        st.dictionaries(st.sampled_from([*fields, "limit:org:a b", "conventional:a\nb"]), garbled, max_size=2)
    )
    return [name for pair in fields.items() for name in pair]


class AnswersAnything:
    """A store whose server answers what it is told to."""

    def __init__(self, replies: list[Any]) -> None:
        self._replies = replies
        self._asked = 0

    def call(self, _step: object) -> Any:
        self._asked += 1
        if self._asked > REPLIES_A_CALL:
            raise StoreUnavailableError("Redis is away")
        return self._replies[self._asked % len(self._replies)]

    def await_turn(self, _step: object) -> bool:
        return False


class AnswersAnythingLater(AnswersAnything):
    async def call(self, step: object) -> Any:
        return super().call(step)


def check_shown(value: Any) -> None:
    """Assert that whatever was read can be printed as JSON and as text."""
    for one in value if isinstance(value, list) else [value]:
        lease = getattr(one, "lease", one)
        if isinstance(lease, Lease):
            json.dumps(lease.as_json())
        str(one)


ANSWERS = st.lists(st.one_of(REPLIES, nearly_right(), nearly_right(), pool_fields()), min_size=1, max_size=5)


@given(replies=ANSWERS, name=st.sampled_from(sorted(OPERATIONS)))
@example(name="renew", replies=[[9_223_372_036_854_775_807, b"renewed", b"", b"renewed", b""]])
@examples(400)
def test_any_reply_is_read_or_refused_in_one_line(name: str, replies: list[Any]) -> None:
    check_shown(accepted(lambda: drive(OPERATIONS[name](), AnswersAnything(replies), UnseenAnswers())))


@given(replies=ANSWERS, name=st.sampled_from(sorted(OPERATIONS)))
@examples(60)
def test_asyncio_reads_or_refuses_any_reply_as_well(name: str, replies: list[Any]) -> None:
    with asyncio.Runner() as runner:
        accepted(lambda: runner.run(drive_async(OPERATIONS[name](), AnswersAnythingLater(replies), UnseenAnswers())))


@st.composite
def answers_on_the_wire(draw: st.DrawFn) -> bytes:
    """What a server sends: RESP, nearly RESP, or anything."""
    numbers = st.sampled_from([-2, -1, 0, 1, 2, 3, 2**31, 2**63, 10**20])
    pieces = st.one_of(
        any_bytes(),
        st.sampled_from([
            b"+OK\r\n", b"+PONG\r\n", b"*0\r\n", b"*-1\r\n", b"$-1\r\n", b"_\r\n", b"#t\r\n", b"%1\r\n", b">2\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$3\r\nabc\r\n", b"*1\r\n" * 50, b"\0" * 1_000,
            b"-ERR " + b"x" * 5_000 + b"\r\n", b"-ALLOC \x1b[31m\r\n", b"-NOSCRIPT no\r\n", b"-LOADING x\r\n",
        ]),
        numbers.map(lambda number: b"*%d\r\n" % number),
        numbers.map(lambda number: b"$%d\r\n" % number),
        numbers.map(lambda number: b":%d\r\n" % number),
        any_bytes().map(lambda value: b"-" + value + b"\r\n"),
        any_bytes().map(lambda value: b"$%d\r\n%s\r\n" % (len(value), value)),
    )  # fmt: skip
    return b"".join(draw(st.lists(pieces, min_size=1, max_size=5)))


class ServesAnything:
    """A server on a loopback port that gives every connection the same answer to whatever it is told."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answer = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer_one, args=(connection,), daemon=True).start()

    def _answer_one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(65_536):
                connection.sendall(self.answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(scope="module")
def stranger() -> Iterator[ServesAnything]:
    server = ServesAnything()
    yield server
    server.close()


CALLS: dict[str, Callable[[PortAllocator], object]] = {
    "claim": lambda ports: ports.claim("email", org="o"),
    "leases": lambda ports: ports.leases(),
    "server": lambda ports: ports.store.server(),
    "time": lambda ports: ports.store.server_time(),
    "events": lambda ports: ports.store.newest_events("alloc:{sdk-v2}:events", 5),
    "wait": lambda ports: ports.store.wait_for_event("alloc:{sdk-v2}:events", "0-0", 0.05),
    "pools": lambda ports: ports.store.pool_names(),
}
TIMEOUT_S = 0.05


@given(answer=answers_on_the_wire(), call=st.sampled_from(sorted(CALLS)))
@example(answer=b"$2147483647\r\nabc", call="leases")
@example(answer=b"*2147483647\r\n", call="leases")
@examples(15)
def test_any_bytes_from_a_server_are_an_answer_or_an_error_in_one_line(
    stranger: ServesAnything, answer: bytes, call: str
) -> None:
    stranger.answer = answer
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with PortAllocator.from_url(stranger.url, host="web-1", timeout=TIMEOUT_S) as ports:
        accepted(lambda: CALLS[call](ports))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000


@given(answer=answers_on_the_wire())
@examples(10)
def test_any_bytes_from_a_server_are_an_answer_or_an_error_for_asyncio_too(
    stranger: ServesAnything, answer: bytes
) -> None:
    async def ask() -> None:
        async with AsyncPortAllocator.from_url(stranger.url, host="web-1", timeout=TIMEOUT_S) as ports:
            for call in (
                ports.leases,
                ports.store.server_time,
                ports.store.pool_names,
                lambda: ports.store.newest_events("alloc:{sdk-v2}:events", 5),
            ):
                try:
                    await call()
                except AllocatorError as error:
                    check_refusal(error)

    stranger.answer = answer
    with asyncio.Runner() as runner:
        runner.run(ask())
