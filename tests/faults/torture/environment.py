"""The world of one round: the server, the way to it, the pool, the books, the actors; and who may touch what when."""

from __future__ import annotations

import contextlib
import random
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import redis

from allocator import PoolSpec, PortAllocator
from torture.client_processes import ClientProcesses
from torture.history import Book
from torture.sql import Table
from torture.topologies import ClusterOfThree, SentinelGroup, Standalone, Topology

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from postgres import Postgres
    from servers import Server

TTL_S, GRACE_S = 2.0, 0.5
PORTS = 20


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run has to itself on this machine.

    Attributes:
        first_port: The first of a pool's ports.
        has_own_network: Whether they are of a network namespace that nobody else uses.
    """

    first_port: int
    has_own_network: bool


class Environment:
    """The servers of one kind, a pool, and a directory of books.

    Attributes:
        has_lost_data: Whether a fault may have lost data of Redis in this round.
        has_repeated: Whether the network may have delivered something twice.
        unwritten_since: From when on the server confirms what it cannot write to its file, or None.
    """

    def __init__(
        self,
        directory: Path,
        setting: Setting,
        seed: int,
        *,
        kind: str = Standalone.name,
        mutation: str | None = None,
        postgres: Postgres | None = None,
    ) -> None:
        self.directory = directory
        self.setting = setting
        self.seed = seed
        self.kind = kind
        self.mutation = mutation
        self.unwritten_since: float | None = None
        self.pool = PoolSpec(
            name="torture", first=setting.first_port, last=setting.first_port + PORTS - 1, ttl_ms=int(TTL_S * 1_000),
            ttl_min_ms=100, grace_ms=int(GRACE_S * 1_000), cooldown_ms=100,
        )  # fmt: skip
        self._postgres = postgres
        self.table: Table | None = None
        self.has_lost_data = False
        self.has_repeated = False
        self.database_down = threading.Lock()
        self.failing_over = threading.Lock()
        self._stack = contextlib.ExitStack()
        self.book = Book(directory / "conductor.jsonl")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.topology = self._make_topology(stack)
            self.book.write(
                "pool", ttl_s=TTL_S, grace_s=GRACE_S, name=self.pool.name, kind_of_redis=self.kind, ports=PORTS
            )
            self.define_pool()
            self.table = Table(self._postgres) if self._postgres else None
            self.clients = stack.enter_context(ClientProcesses(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        self.book.close()

    def _make_topology(self, stack: contextlib.ExitStack) -> Topology:
        if self.kind == SentinelGroup.name:
            return SentinelGroup(stack)
        if self.kind == ClusterOfThree.name:
            return ClusterOfThree(stack, f"alloc:{{{self.pool.name}}}")
        return Standalone(stack, self.directory, random.Random(self.seed), mounts=self.setting.has_own_network)

    @property
    def server(self) -> Server:
        """The server that has the pool's data."""
        return self.topology.server

    @property
    def has_own_network(self) -> bool:
        """Whether the network is of this run alone."""
        return self.setting.has_own_network

    def allocator(self, host: str = "web-1") -> PortAllocator:
        """Return an allocator of the conductor's own, past the proxy."""
        return PortAllocator.from_url(self.topology.url_for(0), pool=self.pool.name, host=host)

    @contextlib.contextmanager
    def admin(self, timeout_s: float = 2.0) -> Iterator[Any]:
        """A client of the server itself."""
        with redis.Redis(
            port=self.server.port, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, protocol=2
        ) as client:
            yield client

    def define_pool(self) -> None:
        """Define the pool, as whoever administers it does when nobody is left who knows it."""
        with self.allocator() as ports:
            ports.apply_pool(self.pool)
