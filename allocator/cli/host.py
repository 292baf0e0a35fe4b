"""`host ls`, `show`, `register`, `cordon`, `uncordon`, `drain`, `forget`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli import completion
from allocator.cli.context import cli_context, report, seconds
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
)
from allocator.cli.output import write_rows
from allocator.model.errors import ExhaustedError, InvalidInputError
from allocator.model.names import check_name

if TYPE_CHECKING:
    from allocator.cli.context import CliContext
    from allocator.model.leases import Lease

HostName = Annotated[str, typer.Argument(help="The host's name.", autocompletion=completion.hosts)]
_HEADINGS = ("HOST", "ADDRESS", "LEASES", "FREE", "STATE", "MACHINE")
DRAIN_LOOK_S = 1.0
"""How often a drain looks again when no event comes: leases that run out send one late."""


def register(application: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        cls=CommandGroup, help="Show the hosts of a pool; cordon, drain or remove one.", no_args_is_help=True
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
    with cli_context(pool, None, redis_url, config, reads_only=True) as context:
        hosts = context.allocator.hosts()
        rules = context.allocator.pool()
        taken = sum(host.leases for host in hosts)
        hosts = [host for host in hosts if name in {None, host.name}]
        if name is not None and not hosts:
            raise InvalidInputError(
                f"host {name} is not known in pool {context.pool}; see 'allocator host ls'", host=name
            )
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
    with cli_context(pool, host, redis_url, config, advertise=advertise) as context:
        done = context.allocator.register()
        report(f"host {context.host} is registered in pool {context.pool} as {_known_address(context)}: {done}")


def _known_address(context: CliContext) -> str:
    return next(host.address for host in context.allocator.hosts() if host.name == context.host)


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
    with cli_context(pool, None, redis_url, config) as context:
        changed = context.allocator.run(listing.cordon(context.pool, name, on=on))
        state = "is cordoned" if on else "gives out ports"
        report(f"host {name} {state}{'' if changed else ' already'}")


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
    """Empty a host: it gives out no new ports, its workers get no new requests and are stopped.

    Waits until no lease is left; exit 75 when some are after the timeout. 'host uncordon' takes it back into use.

    Example: allocator host drain web-1 --timeout 2m
    """
    from allocator.operations import hosts

    check_name("host", name)
    timeout_s = seconds(timeout, "timeout") or 0.0
    with cli_context(pool, None, redis_url, config) as context:
        context.allocator.run(hosts.drain(context.pool, name))
        left = context.allocator.leases(host=name)
        report(f"host {name} is draining: {leases(len(left))}" if left else f"host {name} is empty")
        if left and not no_wait:
            _wait_until_empty(context, name, timeout_s)


def _wait_until_empty(context: CliContext, name: str, timeout_s: float) -> None:
    from allocator.operations import listing
    from allocator.protocol.keys import events_key

    deadline = time.monotonic() + timeout_s
    cursor = context.allocator.run(listing.newest_event(context.pool))
    before: list[Lease] | None = None
    while left := context.allocator.leases(host=name):
        if before and len(left) < len(before):
            report(f"{leases(len(left))} left on {name}")
        before = left
        wait_s = min(DRAIN_LOOK_S, deadline - time.monotonic())
        if wait_s <= 0:
            shown = ", ".join(f"{lease.worker} on port {lease.port}" for lease in left[:5])
            raise ExhaustedError(
                f"host {name} still has {leases(len(left))} after {timeout_s:g} s ({shown}"
                f"{', …' if len(left) > 5 else ''}); they end when their workers do, or by their TTL",
                host=name,
            )
        cursor = context.allocator.store.wait_for_event(events_key(context.pool), cursor, wait_s) or cursor
        context.allocator.run(listing.reap(context.pool))
    report(f"host {name} is empty")


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
    with cli_context(pool, None, redis_url, config) as context:
        ending = forced(context, force=force, reason=reason, yes=yes)
        if ending:
            count = len(context.allocator.leases(host=name))
            confirm(f"End {leases(count)} of host {name} in pool {context.pool}, for {ending.reason!r}?", yes=yes)
        ended = context.allocator.run(hosts.forget(context.pool, name, forced=ending))
        report(f"host {name} is forgotten in pool {context.pool}" + (f"; {leases(ended)} ended" if ending else ""))
