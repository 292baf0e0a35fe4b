"""What a shell completes beside commands and options: pools, hosts, workers, leased ports; nothing without Redis."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

import typer  # noqa: TC002  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.cli.options import Desk

T = TypeVar("T")
TIMEOUT_S = "2s"
"""A shell waits for nobody longer."""


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the pools that begin so, those that are built in included."""
    from allocator.model.pools import BUILT_IN

    return _beginning(incomplete, [*BUILT_IN, *_read(ctx, lambda at: at.allocator.store.pool_names())])


def hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the hosts of the pool that begin so."""
    from allocator.operations.listing import spaces

    return _beginning(incomplete, _read(ctx, lambda at: at.allocator.run(spaces(at.pool))))


def workers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the workers with a lease that begin so; `#0` is left out, as it may be."""
    found = _read(ctx, lambda at: [str(lease.worker).removesuffix("#0") for lease in at.allocator.leases()])
    return _beginning(incomplete, found)


def ports(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the leased ports of the host that begin so."""
    return _beginning(
        incomplete, _read(ctx, lambda at: [str(lease.port) for lease in at.allocator.leases(host=at.host)])
    )


def targets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the leased ports of the host and the workers that begin so."""
    return ports(ctx, incomplete) + workers(ctx, incomplete)


def _beginning(incomplete: str, found: list[str]) -> list[str]:
    return [word for word in dict.fromkeys(found) if word.startswith(incomplete) and word != "*"]


def _read(ctx: typer.Context, read: Callable[[Desk], list[str]]) -> list[str]:
    """Return what is found with the options that stand on the line already; nothing where that fails."""
    from allocator.cli.options import desk
    from allocator.model.errors import AllocatorError

    given = {name: ctx.params.get(name) for name in ("pool", "host", "redis_url", "config")}
    os.environ.setdefault("ALLOCATOR_CONNECT_TIMEOUT", TIMEOUT_S)
    with (
        open(os.devnull, "w", encoding="utf-8") as nobody,  # noqa: PTH123  # the null device is no path of ours
        contextlib.redirect_stderr(nobody),
        contextlib.suppress(AllocatorError, OSError),
        desk(given["pool"], given["host"], given["redis_url"], given["config"], reads_only=True) as at,
    ):
        return read(at)
    return []
