"""The options that every command takes, and what a command works with once they are read."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.model.errors import ConfigurationError, printable
from allocator.model.names import shown
from allocator.model.settings import Settings, load_settings

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from allocator.client.blocking import PortAllocator
    from allocator.client.lease_files import LeaseFiles
    from allocator.client.tracing import Tracer
    from allocator.model.leases import Lease

PoolOption = Annotated[str | None, typer.Option("--pool", help="The pool. [default: sdk-v2; ALLOCATOR_POOL]")]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Name of this port namespace. [default: the host name; ALLOCATOR_HOST]")
]
AdvertiseOption = Annotated[
    str | None,
    typer.Option("--advertise", help="This host's address for others. [default: its route's; ALLOCATOR_ADVERTISE]"),
]
RedisOption = Annotated[
    str | None, typer.Option("--redis-url", help="Where Redis is. [default: embedded server; ALLOCATOR_REDIS_URL]")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option("--database-url", help="Where the database is. [default: a SQLite file; ALLOCATOR_DATABASE_URL]"),
]
ConfigOption = Annotated[str | None, typer.Option("--config", help="A settings file. [default: allocator.toml]")]


class Format(StrEnum):
    """How a command writes its data."""

    TEXT = "text"
    JSON = "json"
    ENV = "env"
    SHELL = "shell"


class ListFormat(StrEnum):
    """How a command writes a listing."""

    TEXT = "text"
    JSON = "json"


LeaseFormat = Annotated[Format, typer.Option("--format", help="How to write the lease.")]
RowsFormat = Annotated[ListFormat, typer.Option("--format", help="How to write the rows.")]


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with.

    Attributes:
        settings: What it goes by.
        allocator: The pool's leases on this host.
    """

    settings: Settings
    allocator: PortAllocator

    @property
    def files(self) -> LeaseFiles:
        """The tokens of leases that were claimed here."""
        from allocator.client.lease_files import LeaseFiles

        return LeaseFiles(self.settings.state_dir / "leases")

    @property
    def host(self) -> str:
        """The name of this port namespace."""
        return self.allocator.session.host

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self.settings.pool


def read_settings(
    pool: str | None, host: str | None, redis_url: str | None, config: str | None, **others: str | None
) -> Settings:
    """Return the settings that the flags, the environment and the file make."""
    flags = {"pool": pool, "host": host, "redis_url": redis_url, **others}
    return load_settings(flags, os.environ, config=config)


@contextmanager
def desk(
    pool: str | None = None,
    host: str | None = None,
    redis_url: str | None = None,
    config: str | None = None,
    *,
    advertise: str | None = None,
    database_url: str | None = None,
) -> Iterator[Desk]:
    """Give what a command works with, connected lazily, closed at the end."""
    settings = read_settings(pool, host, redis_url, config, advertise=advertise, database_url=database_url)
    with blocking_allocator(settings) as allocator:
        yield Desk(settings, allocator)


def blocking_allocator(settings: Settings) -> PortAllocator:
    """Return the allocator that the settings make, not connected yet."""
    from allocator.client.blocking import PortAllocator
    from allocator.client.session import make_session
    from allocator.store.blocking import Store

    tracer = tracer_of(settings)
    session = make_session(settings.pool, settings.host, "keep", advertise=settings.advertise, tracer=tracer)
    timeout_s = settings.connect_timeout_ms / 1_000
    if settings.redis_url:
        store = Store.open(settings.redis_url, timeout_s=timeout_s, password=settings.redis_password)
    else:
        store = Store.embedded(lambda: embedded_url(settings), timeout_s=timeout_s)
    return PortAllocator(store, session)


def tracer_of(settings: Settings) -> Tracer | None:
    """Return what spans go to where `ALLOCATOR_TRACING=1` asks for them, or None.

    Raises:
        ConfigurationError: When the variable is neither 0 nor 1, or OpenTelemetry is not installed.
    """
    wanted = settings.environ.get("ALLOCATOR_TRACING") or "0"
    if wanted == "0":
        return None
    if wanted != "1":
        raise ConfigurationError(f"ALLOCATOR_TRACING={shown(wanted)} says neither yes nor no; set 1 or 0")
    from allocator.client.tracing import OpenTelemetryTracer

    return OpenTelemetryTracer()


def embedded_url(settings: Settings) -> str:
    """Return the URL of the embedded server, which is started, and talked about, when it does not run."""
    from allocator.store.embedded import EmbeddedServer

    return EmbeddedServer(settings.state_dir).ensure(
        lambda status: talk(
            f"no Redis is configured: started an embedded server (pid {status.pid}) with its data in {status.data_dir}"
        )
    )


class Voice:
    """Says one line to the person who watches; that nobody does stops no command.

    Attributes:
        log: Where a long-running command says it instead, once it has begun to log.
    """

    log: logging.Logger | None = None

    def __call__(self, line: str, lease: Lease | None = None) -> None:
        """Say it.

        Args:
            line: The sentence, which may have a name of anybody's in it.
            lease: What it is about, or None.
        """
        line = printable(line)
        if self.log is not None:
            self.log.info("%s", line, extra={"lease": lease})
            return
        with suppress(OSError):
            print(f"allocator: {line}", file=sys.stderr)


talk = Voice()
