"""`ls`: the live leases of the pool."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli import completion
from allocator.cli.context import cli_context, items_of
from allocator.cli.options import ConfigOption, ListFormat, PoolOption, RedisOption, RowsFormat
from allocator.cli.output import write_json, write_rows
from allocator.model.durations import format_duration
from allocator.model.names import check_name, check_plugin
from allocator.model.states import LIVE_STATES
from allocator.operations.context import check_pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.cli.context import CliContext
    from allocator.model.leases import Lease

HEADINGS = ("HOST", "PORT", "ORG", "PLUGIN", "INSTANCE", "STATE", "PID", "ENDS IN", "FENCE")
LOOK_S = 2.0
"""How often a watch at a terminal is painted anew although nothing happened: leases come to their ends."""

ORDERS: dict[str, Callable[[Lease], object]] = {
    "host": lambda lease: lease.host,
    "port": lambda lease: lease.port,
    "worker": lambda lease: (lease.org, lease.plugin, lease.instance),
    "state": lambda lease: lease.state,
    "ends": lambda lease: lease.expires_at,
    "granted": lambda lease: lease.granted_at,
}
"""What leases can be sorted by; those that are equal stand by host and port."""


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command("ls")(list_leases)


def list_leases(
    org: Annotated[str | None, typer.Option("--org", metavar="ORG", help="Leases of this organisation only.")] = None,
    plugin: Annotated[
        str | None, typer.Option("--plugin", metavar="PLUGIN", help="Leases of this plugin only.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="Leases on this host only. [default: all hosts]",
            autocompletion=completion.hosts,
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", metavar="STATE,STATE", help=f"Leases in these states only: {', '.join(sorted(LIVE_STATES))}."
        ),
    ] = None,
    sort: Annotated[str, typer.Option("--sort", metavar="|".join(ORDERS), help="Order of the rows.")] = "host",
    watch: Annotated[bool, typer.Option("--watch", help="Print the leases again whenever they change.")] = False,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """List the live leases of the pool, on all hosts.

    Example: allocator ls --org org-123 --state ready,degraded --format json
    """
    for kind, name in (("organisation", org), ("host", host)):
        if name is not None:
            check_name(kind, name)
    if plugin is not None:
        check_plugin(plugin)
    states = items_of(state, "--state", LIVE_STATES)
    (order,) = items_of(sort, "--sort", ORDERS, only_one=True)
    with cli_context(pool, None, redis_url, config, reads_only=True) as context:

        def read() -> list[Lease]:
            found = context.allocator.leases(org=org, plugin=plugin, host=host)
            return sorted((one for one in found if not states or one.state in states), key=ORDERS[order])  # type: ignore[arg-type]  # one order compares one kind

        leases = read()
        if not leases:
            context.allocator.run(check_pool(context.pool))
        _write(context, leases, form)
        if watch:
            _watch(context, read, leases, form)


def _watch(context: CliContext, read: Callable[[], list[Lease]], before: list[Lease], form: ListFormat) -> None:
    from allocator.operations.listing import newest_event
    from allocator.protocol.keys import events_key

    is_painted = form is ListFormat.TEXT and sys.stdout.isatty()
    cursor = context.allocator.run(newest_event(context.pool))
    while True:
        cursor = context.allocator.store.wait_for_event(events_key(context.pool), cursor, LOOK_S) or cursor
        leases = read()
        if is_painted:
            sys.stdout.write("\x1b[H\x1b[J")
        if is_painted or [_state(one) for one in leases] != [_state(one) for one in before]:
            _write(context, leases, form)
            before = leases


def _state(lease: Lease) -> tuple[object, ...]:
    return (lease.address, lease.fence, lease.state, lease.pid)


def _write(context: CliContext, leases: list[Lease], form: ListFormat) -> None:
    if form is ListFormat.JSON:
        write_json([lease.as_json() for lease in leases])
        return
    now = context.allocator.store.server_time()
    write_rows(HEADINGS, [_row(lease, now) for lease in leases], form)
    sys.stdout.flush()


def _row(lease: Lease, now: float) -> tuple[object, ...]:
    left = format_duration((lease.expires_at - now) * 1_000)
    state = str(lease.state)
    if lease.starts_since is not None:
        state += f" for {format_duration(max(0.0, now - lease.starts_since) * 1_000)}"
    return (lease.host, lease.port, lease.org, lease.plugin, lease.instance, state, lease.pid, left, lease.fence)
