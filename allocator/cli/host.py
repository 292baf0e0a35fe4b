"""`host ls`, `show`, `register`, `cordon`, `uncordon`, `drain`, `forget`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli import completion
from allocator.cli.force import ReasonOption, YesOption, confirm, forced, leases
from allocator.cli.groups import CommandGroup
from allocator.cli.options import (
    AdvertiseOption,
    ConfigOption,
    HostOption,
    ListFormat,
    PoolOption,
    RedisOption,
    RowsFormat,
    desk,
    seconds,
    talk,
)
from allocator.cli.output import write_rows
from allocator.model.errors import ExhaustedError, InvalidInputError
from allocator.model.names import check_name

if TYPE_CHECKING:
    from allocator.cli.options import Desk
    from allocator.model.leases import Lease

HostName = Annotated[str, typer.Argument(help="The host's name.", autocompletion=completion.hosts)]
_HEADINGS = ("HOST", "ADDRESS", "LEASES", "FREE", "STATE", "MACHINE")
DRAIN_LOOK_S = 1.0
"""How often a drain looks again when no event comes: leases that run out send one late."""


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        cls=CommandGroup, help="The hosts of a pool, and whether they give out ports.", no_args_is_help=True
    )
    group.command("ls")(list_hosts)
    group.command("show")(show)
    group.command("register")(register_host)
    group.command("cordon")(cordon)
    group.command("uncordon")(uncordon)
    group.command("drain")(drain)
    group.command("forget")(forget)
    application.add_typer(group, name="host")


def list_hosts(
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """List the hosts of the pool: those that registered or have claimed.

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
    with desk(pool, None, redis_url, config, reads_only=True) as at:
        hosts = at.allocator.hosts()
        rules = at.allocator.pool()
        taken = sum(host.leases for host in hosts)
        hosts = [host for host in hosts if name in {None, host.name}]
        if name is not None and not hosts:
            raise InvalidInputError(f"host {name} is not known in pool {at.pool}; see 'allocator host ls'", host=name)
        rows = [
            (
                host.name,
                host.address or None,
                host.leases,
                max(0, rules.size - (taken if rules.scope == "fleet" else host.leases)),
                host.condition,
                host.machine or None,
            )
            for host in hosts
        ]
        write_rows(_HEADINGS, rows, form)


def register_host(
    advertise: AdvertiseOption = None,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Make this host known before its first claim, or change the address under which others reach it.

    Example: allocator host register --advertise 10.0.0.5
    """
    with desk(pool, host, redis_url, config, advertise=advertise) as at:
        done = at.allocator.register()
        talk(f"host {at.host} is registered in pool {at.pool} as {_known_address(at)}: {done}")


def _known_address(at: Desk) -> str:
    return next(host.address for host in at.allocator.hosts() if host.name == at.host)


def cordon(name: HostName, pool: PoolOption = None, redis_url: RedisOption = None, config: ConfigOption = None) -> None:
    """Make a host give out no new ports; its leases stay.

    Example: allocator host cordon web-1
    """
    _set(name, pool, redis_url, config, on=True)


def uncordon(
    name: HostName, pool: PoolOption = None, redis_url: RedisOption = None, config: ConfigOption = None
) -> None:
    """Make a cordoned or drained host give out ports again.

    Example: allocator host uncordon web-1
    """
    _set(name, pool, redis_url, config, on=False)


def _set(name: str, pool: str | None, redis_url: str | None, config: str | None, *, on: bool) -> None:
    from allocator.operations import listing

    check_name("host", name)
    with desk(pool, None, redis_url, config) as at:
        changed = at.allocator.run(listing.cordon(at.pool, name, on=on))
        state = "cordoned" if on else "not cordoned"
        talk(f"host {name} is {state}{'' if changed else ' already'}")


def drain(
    name: HostName,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="Time to wait until the host is empty.")
    ] = "5m",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the host is empty.")] = False,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Empty a host: no new ports, nobody is sent to its workers, their supervisors stop them.

    Waits until no lease is left; exit 75 when some are after the timeout. 'host uncordon' takes it back into use.

    Example: allocator host drain web-1 --timeout 2m
    """
    from allocator.operations import hosts

    check_name("host", name)
    timeout_s = seconds(timeout, "timeout") or 0.0
    with desk(pool, None, redis_url, config) as at:
        at.allocator.run(hosts.drain(at.pool, name))
        left = at.allocator.leases(host=name)
        talk(f"host {name} is draining: {leases(len(left))}" if left else f"host {name} is empty")
        if left and not no_wait:
            _wait_until_empty(at, name, timeout_s)


def _wait_until_empty(at: Desk, name: str, timeout_s: float) -> None:
    from allocator.operations import listing
    from allocator.protocol.keys import events_key

    deadline = time.monotonic() + timeout_s
    cursor = at.allocator.run(listing.newest_event(at.pool))
    before: list[Lease] | None = None
    while left := at.allocator.leases(host=name):
        if before and len(left) < len(before):
            talk(f"{leases(len(left))} left on {name}")
        before = left
        wait_s = min(DRAIN_LOOK_S, deadline - time.monotonic())
        if wait_s <= 0:
            shown = ", ".join(f"{lease.worker} on port {lease.port}" for lease in left[:5])
            raise ExhaustedError(
                f"host {name} still has {leases(len(left))} after {timeout_s:g} s ({shown}"
                f"{', …' if len(left) > 5 else ''}); they end when their workers do, or by their TTL",
                host=name,
            )
        cursor = at.allocator.store.wait_for_event(events_key(at.pool), cursor, wait_s) or cursor
        at.allocator.run(listing.reap(at.pool))
    talk(f"host {name} is empty")


def forget(
    name: HostName,
    force: Annotated[bool, typer.Option("--force", help="End its live leases: the host is gone for good.")] = False,
    reason: ReasonOption = None,
    yes: YesOption = False,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Remove a host that has no lease from the pool; it is known again when it claims again.

    With --force its live leases are ended first, for their workers to start on other hosts. A worker that lives after
    all stops at its next heartbeat.

    Example: allocator host forget web-1 --force --reason 'its disk died'
    """
    from allocator.operations import hosts

    check_name("host", name)
    with desk(pool, None, redis_url, config) as at:
        ending = forced(at, force=force, reason=reason, yes=yes)
        if ending:
            count = len(at.allocator.leases(host=name))
            confirm(f"End {leases(count)} of host {name} in pool {at.pool}, for {ending.reason!r}?", yes=yes)
        ended = at.allocator.run(hosts.forget(at.pool, name, forced=ending))
        talk(f"host {name} is forgotten in pool {at.pool}" + (f"; {leases(ended)} ended" if ending else ""))
