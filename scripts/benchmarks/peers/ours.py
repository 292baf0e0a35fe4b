"""This package: its scripts alone, the library that a program uses, and the library for a host that is elsewhere."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING, Any

from redis import Redis

from allocator import ExhaustedError, PortAllocator, PortRefusedError
from allocator.model.pools import SDK_V2, PoolSpec
from benchmarks.leases import RETURNING
from benchmarks.peers.contract import TTL_S, Client, Peer, Traits
from benchmarks.wire import claim_call, end_call, load, port_of, send

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.protocol.signatures.claim import ClaimCall

PIPELINE = 500
HOST = socket.gethostname().partition(".")[0] or "bench"
ELSEWHERE = f"{'m' * 16} {'b' * 36} 4026531840"


class OurPeer(Peer):
    """A pool of this package."""

    ours = True
    bind_check = "yes"

    @property
    def pool(self) -> PoolSpec:
        """The pool: for 44 ports with the conventional ones of the default pool."""
        bands = SDK_V2.conventional if self.ports.size == SDK_V2.size else {}
        name = f"{type(self).__name__.lower()}-{self.ports.size}"
        last = self.ports.first + self.ports.size - 1
        return PoolSpec(
            name=name, first=self.ports.first, last=last, conventional=bands, cooldown_ms=0, ttl_ms=TTL_S * 1_000
        )

    def open(self) -> PortAllocator:
        """Return an allocator of the pool."""
        return PortAllocator.from_url(self.url, pool=self.pool.name, host=HOST)

    def identity(self) -> str:
        """Return how the host is known."""
        with self.open() as allocator:
            return allocator.session.context.full_identity

    def prepare(self) -> None:
        with self.open() as allocator:
            allocator.apply_pool(self.pool)

    def claim_call(self, worker: str, token: str, identity: str) -> ClaimCall:
        """Return a claim of the one host."""
        return claim_call(self.pool.name, HOST, worker, token, ttl_ms=TTL_S * 1_000, identity=identity)

    def fill(self, count: int) -> None:
        redis: Any = Redis.from_url(self.url, protocol=2)
        identity = self.identity()
        load(redis)
        for start in range(self.filled, count, PIPELINE):
            pipeline = redis.pipeline(transaction=False)
            for at in range(start, min(start + PIPELINE, count)):
                send(pipeline, self.claim_call(f"filling-{at}/crm#0", secrets.token_hex(16), identity))
            for reply in pipeline.execute():
                port_of(reply)
        self.filled = count
        redis.close()


class Scripts(OurPeer):
    """The two scripts over the same driver, without any of the library."""

    name = "portlease, its scripts"
    traits = Traits("yes", "yes", "yes", "yes", "first come, first served", "no", "one answer")

    def identity(self) -> str:
        return ELSEWHERE

    def client(self, number: int) -> Client:
        return ScriptsClient(self, number)


class ScriptsClient(Client):
    """Sends a claim and a release for 100 workers in turn."""

    def __init__(self, peer: OurPeer, number: int) -> None:
        self.peer, self.number, self.at = peer, number, 0
        self.redis: Any = Redis.from_url(peer.url, protocol=2)
        load(self.redis)

    def claim(self, until: float) -> Any:  # noqa: ARG002  # one answer, however full
        self.at += 1
        token = secrets.token_hex(16)
        worker = f"org-{self.number}-{self.at % RETURNING}/email#0"
        reply = send(self.redis, self.peer.claim_call(worker, token, ELSEWHERE))
        return None if reply[0] == b"exhausted" else (port_of(reply), token)

    def release(self, lease: Any) -> None:
        send(self.redis, end_call(self.peer.pool.name, HOST, *lease))

    def close(self) -> None:
        self.redis.close()


class Library(OurPeer):
    """`PortAllocator` as a program uses it."""

    name = "portlease, `PortAllocator`"
    traits = Traits("yes", "yes", "yes: one thread, one call a pool", "yes", "first come, first served", "yes",
                    "one answer")  # fmt: skip

    def client(self, number: int) -> Client:
        return LibraryClient(self, number)


class LibraryClient(Client):
    """Claims and releases for 100 workers in turn."""

    def __init__(self, peer: OurPeer, number: int) -> None:
        self.number, self.at = number, 0
        self.allocator = peer.open()

    def claim(self, until: float) -> Lease | None:  # noqa: ARG002  # one answer, however full
        self.at += 1
        try:
            return self.allocator.claim("email", org=f"org-{self.number}-{self.at % RETURNING}")
        except (ExhaustedError, PortRefusedError):
            return None

    def release(self, lease: Any) -> None:
        self.allocator.release(lease)

    def close(self) -> None:
        self.allocator.close()


class Elsewhere(Library):
    """`PortAllocator` for another host, as the HTTP API claims for those who ask it: there is no kernel to look at."""

    name = "portlease, `PortAllocator`, for another host"
    traits = Traits("yes", "yes", "yes: one thread, one call a pool", "yes", "first come, first served",
                    "by that host's own", "one answer")  # fmt: skip

    def open(self) -> PortAllocator:
        allocator = super().open()
        allocator.session = allocator.session.as_host(HOST, ELSEWHERE)
        return allocator


ALL: tuple[type[OurPeer], ...] = (Scripts, Library, Elsewhere)
