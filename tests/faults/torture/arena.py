"""The world of one round: the server, the way to it, the pool, the books, the actors; and who may touch what when."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import redis
from servers import Server, free_port, wait_until

from allocator import PoolSpec, PortAllocator
from torture.cast import Cast
from torture.clock import Clock, library
from torture.history import Book
from torture.proxy import Proxy
from torture.sql import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from postgres import Postgres

TTL_S, GRACE_S = 2.0, 0.5
PORTS = 20
DISK = "48m"
SETTINGS = (
    "--appendonly", "yes", "--enable-debug-command", "yes", "--aof-load-truncated", "yes",
    "--auto-aof-rewrite-percentage", "0",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run has to itself on this machine.

    Attributes:
        first_port: The first of a pool's ports.
        has_own_network: Whether they are of a network namespace that nobody else uses.
    """

    first_port: int
    has_own_network: bool


class Arena:
    """One server with a proxy before it, a pool, and a directory of books.

    Attributes:
        has_lost_data: Whether a fault may have lost data of Redis in this round.
        unwritten_since: From when on the server confirms what it cannot write to its file, or None.
    """

    def __init__(
        self,
        directory: Path,
        setting: Setting,
        seed: int,
        *,
        mutation: str | None = None,
        postgres: Postgres | None = None,
    ) -> None:
        self.directory = directory
        self.setting = setting
        self.seed = seed
        self.rng = random.Random(seed)
        self.mutation = mutation
        self.unwritten_since: float | None = None
        self.pool = PoolSpec(
            name="torture", first=setting.first_port, last=setting.first_port + PORTS - 1, ttl_ms=int(TTL_S * 1_000),
            ttl_min_ms=100, grace_ms=int(GRACE_S * 1_000), cooldown_ms=100,
        )  # fmt: skip
        self._postgres = postgres
        self.table: Table | None = None
        self.has_lost_data = False
        self.database_down = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self.book = Book(directory / "conductor.jsonl")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.disk = self._make_disk(stack)
            self.clock = Clock(self.directory / "clock", preloaded) if (preloaded := library()) else None
            self.server = stack.enter_context(
                Server(
                    *SETTINGS,
                    "--appendfsync",
                    self.rng.choice(("always", "everysec")),
                    directory=self.disk or self.directory,
                    environment=self.clock and self.clock.environment(),
                )
            ).ready()
            self.proxy = stack.enter_context(Proxy(self.server.port, free_port(), self.seed))
            self.book.write("pool", ttl_s=TTL_S, grace_s=GRACE_S, name=self.pool.name)
            self.define_pool()
            self.table = Table(self._postgres) if self._postgres else None
            self.cast = stack.enter_context(Cast(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        self.book.close()

    def _make_disk(self, stack: contextlib.ExitStack) -> Path | None:
        """Return a small file system of the server's own, or None where none can be mounted."""
        if not self.setting.has_own_network:  # mounts are of the same kind of right, and are seen by nobody else
            return None
        disk = self.directory / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "torture", disk], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", disk], check=True)
        return disk

    @property
    def has_own_network(self) -> bool:
        return self.setting.has_own_network

    def url_for(self, number: int) -> str:
        """Return by which way an actor goes: every other one through the proxy."""
        return f"redis://127.0.0.1:{self.proxy.port if number % 2 else self.server.port}"

    def allocator(self, host: str = "web-1") -> PortAllocator:
        """Return an allocator of the conductor's own, past the proxy."""
        return PortAllocator.from_url(self.server.url, pool=self.pool.name, host=host)

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

    def crash(self) -> bool:
        """End the server as a crash does; return whether it was there."""
        with self._lock:
            if self.server.process.poll() is not None:
                return False
            self.server.crash()
            return True

    def start_again(self) -> None:
        """Start the server where it is down; on a full disk it ends again."""
        with self._lock:
            if self.server.process.poll() is not None:
                self.server.start()
                wait_until(
                    lambda: self.server.process.poll() is not None or self.server.client(socket_timeout=1.0).ping(),
                    "the server neither answers nor ends",
                )
