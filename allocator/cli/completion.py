"""What a shell completes beside commands and options: pools, hosts, workers, leased ports; nothing without Redis."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

import typer  # noqa: TC002  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.client.blocking import PortAllocator

T = TypeVar("T")
TIMEOUT_S = "2s"
"""A shell waits for nobody longer."""


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the pools that begin so, those that are built in included."""
    from allocator.model.pools import BUILT_IN

    return _beginning(incomplete, [*BUILT_IN, *_read(ctx, lambda at: at.store.pool_names())])


def hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the hosts of the pool that begin so."""
    from allocator.operations.listing import namespaces

    return _beginning(incomplete, _read(ctx, lambda at: at.run(namespaces(at.session.pool))))


def workers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the workers with a lease that begin so; `#0` is left out, as it may be."""
    found = _read(ctx, lambda at: [str(lease.worker).removesuffix("#0") for lease in at.leases()])
    return _beginning(incomplete, found)


def ports(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the leased ports of the host that begin so."""
    return _beginning(incomplete, _read(ctx, lambda at: [str(lease.port) for lease in at.leases(host=at.session.host)]))


def targets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the leased ports of the host and the workers that begin so."""
    return ports(ctx, incomplete) + workers(ctx, incomplete)


def _beginning(incomplete: str, found: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete) and name != "*"]


def _read(ctx: typer.Context, read: Callable[[PortAllocator], list[str]]) -> list[str]:
    """Return what is found with the options that stand on the line already; nothing where that fails."""
    from allocator.client.blocking import PortAllocator
    from allocator.client.session import session_of
    from allocator.model.errors import AllocatorError
    from allocator.model.settings import load_settings
    from allocator.store.base import open_store
    from allocator.store.blocking import Store

    flags = {name: ctx.params.get(name) for name in ("pool", "host", "redis_url")}
    os.environ.setdefault("ALLOCATOR_CONNECT_TIMEOUT", TIMEOUT_S)
    with (
        open(os.devnull, "w", encoding="utf-8") as nobody,  # noqa: PTH123  # the null device is no path of ours
        contextlib.redirect_stderr(nobody),
        contextlib.suppress(AllocatorError, OSError),
    ):
        settings = load_settings(flags, os.environ, config=ctx.params.get("config"))
        with PortAllocator(open_store(Store, settings, reads_only=True), session_of(settings)) as allocator:
            return read(allocator)
    return []
