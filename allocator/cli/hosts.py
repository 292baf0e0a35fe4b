"""`host ls`, `host show`, `host cordon`, `host uncordon`."""

from __future__ import annotations

from typing import Annotated

import typer

from allocator.cli.options import ConfigOption, ListFormat, PoolOption, RedisOption, RowsFormat, desk, talk
from allocator.cli.output import write_rows
from allocator.model.errors import InvalidInputError
from allocator.model.names import check_name

HostName = Annotated[str, typer.Argument(help="The host's name.")]
_HEADINGS = ("HOST", "LEASES", "FREE", "CORDONED", "MACHINE")


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="The hosts of a pool, and whether they give out ports.", no_args_is_help=True)
    group.command("ls")(list_hosts)
    group.command("show")(show)
    group.command("cordon")(cordon)
    group.command("uncordon")(uncordon)
    application.add_typer(group, name="host")


def list_hosts(
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """List the hosts that have claimed in the pool.

    Example: allocator host ls
    """
    _write(None, form, pool, redis_url, config)


def show(
    name: HostName,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one host.

    Example: allocator host show web-1
    """
    _write(check_name("host", name), form, pool, redis_url, config)


def _write(name: str | None, form: ListFormat, pool: str | None, redis_url: str | None, config: str | None) -> None:
    with desk(pool, None, redis_url, config) as at:
        hosts = [host for host in at.allocator.hosts() if name in {None, host.name}]
        if name is not None and not hosts:
            raise InvalidInputError(f"host {name} is not known in pool {at.pool}; see 'allocator host ls'", host=name)
        size = at.allocator.pool().size
        rows = [(host.name, host.leases, size - host.leases, host.cordoned, host.machine or None) for host in hosts]
        write_rows(_HEADINGS, rows, form)


def cordon(name: HostName, pool: PoolOption = None, redis_url: RedisOption = None, config: ConfigOption = None) -> None:
    """Make a host give out no new ports; its leases stay.

    Example: allocator host cordon web-1
    """
    _set(name, pool, redis_url, config, on=True)


def uncordon(
    name: HostName, pool: PoolOption = None, redis_url: RedisOption = None, config: ConfigOption = None
) -> None:
    """Make a cordoned host give out ports again.

    Example: allocator host uncordon web-1
    """
    _set(name, pool, redis_url, config, on=False)


def _set(name: str, pool: str | None, redis_url: str | None, config: str | None, *, on: bool) -> None:
    from allocator.protocol import listing

    check_name("host", name)
    with desk(pool, None, redis_url, config) as at:
        changed = at.allocator.run(listing.cordon(at.pool, name, on=on))
        state = "cordoned" if on else "not cordoned"
        talk(f"host {name} is {state}{'' if changed else ' already'}")
