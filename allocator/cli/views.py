"""`ls`, `show`, `who`, `events`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.options import ConfigOption, Desk, HostOption, ListFormat, PoolOption, RedisOption, RowsFormat, desk
from allocator.cli.output import write_json, write_rows
from allocator.cli.targets import parse_target
from allocator.model.durations import format_duration
from allocator.model.errors import InvalidInputError, LeaseLostError, printable
from allocator.model.names import check_name, check_plugin, check_port
from allocator.operations.context import check_pool
from allocator.protocol.wire import event_time

if TYPE_CHECKING:
    from allocator.model.leases import Lease
    from allocator.operations.listing import PortView

MAX_EVENTS = 10_000


def register(application: typer.Typer) -> None:
    """Add the commands."""
    application.command("ls")(list_leases)
    application.command()(show)
    application.command()(who)
    application.command()(events)


def list_leases(
    org: Annotated[str | None, typer.Option("--org", help="Only of this organisation.")] = None,
    plugin: Annotated[str | None, typer.Option("--plugin", help="Only of this plugin.")] = None,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: Annotated[str | None, typer.Option("--host", help="Only on this host. [default: all hosts]")] = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """List the live leases of the pool, on all hosts.

    Example: allocator ls --org org-123 --format json
    """
    for kind, name in (("organisation", org), ("host", host)):
        if name is not None:
            check_name(kind, name)
    if plugin is not None:
        check_plugin(plugin)
    with desk(pool, None, redis_url, config, reads_only=True) as at:
        leases = at.allocator.leases(org=org, plugin=plugin, host=host)
        if not leases:
            at.allocator.run(check_pool(at.pool))
        now = at.allocator.store.server_time()
        if form is ListFormat.JSON:
            write_json([lease.as_json() for lease in leases])
            return
        rows = [_row(lease, now) for lease in leases]
        write_rows(("HOST", "PORT", "ORG", "PLUGIN", "INSTANCE", "STATE", "PID", "ENDS IN", "FENCE"), rows, form)


def _row(lease: Lease, now: float) -> tuple[object, ...]:
    left = format_duration((lease.expires_at - now) * 1_000)
    state = str(lease.state)
    if lease.starts_since is not None:
        state += f" for {format_duration(max(0.0, now - lease.starts_since) * 1_000)}"
    return (lease.host, lease.port, lease.org, lease.plugin, lease.instance, state, lease.pid, left, lease.fence)


def show(
    target: Annotated[
        str, typer.Argument(metavar="PORT|ORG/PLUGIN[#INSTANCE]", help="A port of this host, or a worker.")
    ],
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Show everything about one port or one worker.

    Example: allocator show org-123/email
    """
    with desk(pool, host, redis_url, config, reads_only=True) as at:
        named = parse_target(target)
        if not isinstance(named, int):
            lease = next((one for one in at.allocator.leases() if one.worker == named), None)
            if lease is None:
                raise LeaseLostError(f"{named} has no live lease in pool {at.pool}; see 'allocator ls'")
            facts: dict[str, object] = dict(lease.as_json())
        else:
            view = _view(at, named)
            if view.why == "free":
                at.allocator.pool().check_port(named)
            facts = {"pool": at.pool, "host": at.host, "port": view.port, "status": view.why}
            if view.lease:
                facts |= view.lease.as_json()
            elif view.claimable_in_ms > 0:
                facts["claimable_in_s"] = round(view.claimable_in_ms / 1_000, 3)
        _write_facts(facts, form)


def _view(at: Desk, port: int) -> PortView:
    from allocator.operations.listing import port_view

    rules = at.allocator.pool()
    return at.allocator.run(port_view(at.pool, rules.space_of(at.allocator.session.context.host), port))


def _write_facts(facts: dict[str, object], form: ListFormat) -> None:
    if form is ListFormat.JSON:
        write_json(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(printable(f"{name.ljust(width)}  {_fact(value)}"))


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={word}" for name, word in value.items()) or "-"
    return "-" if value is None else str(value)


def who(
    port: Annotated[str, typer.Argument(metavar="PORT", help="A port of this host, of the pool or not.")],
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Say who has a port: its lease, and who listens on it.

    Example: allocator who 5556
    """
    number = check_port(port)
    with desk(pool, host, redis_url, config, reads_only=True) as at:
        from allocator.cli.checks.leases import is_stranger
        from allocator.kernel.sockets import listeners

        view = _view(at, number)
        listening = listeners(number, number)
        lease = view.lease
        rules = at.allocator.pool()
        status = view.why if view.why != "free" or number in rules else "not in the pool"
        if form is ListFormat.JSON:
            write_json(
                {
                    "port": number,
                    "status": status,
                    "lease": lease.as_json() if lease else None,
                    "listeners": [
                        {
                            "address": one.address,
                            "pid": one.pid,
                            "command": one.command,
                            "user": one.user,
                            "stranger": is_stranger(lease, one),
                        }
                        for one in listening
                    ],
                }
            )
            return
        print(f"lease     {f'{lease.worker}, {lease.state}, fence {lease.fence}' if lease else status}")
        for one in listening:
            whose = ", a stranger: not the leased worker's" if is_stranger(lease, one) else ""
            print(f"listener  {one.command or '?'} pid {one.pid or '?'} user {one.user or '?'} on {one.address}{whose}")
        if not listening:
            print("listener  nobody")


def events(
    count: Annotated[str, typer.Option("--count", help="How many of the last events.")] = "20",
    follow: Annotated[bool, typer.Option("--follow", help="Go on with those that come.")] = False,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Print what happened in the pool, one event a line.

    Example: allocator events --count 50 --follow
    """
    if not count.isascii() or not count.isdecimal() or not 1 <= int(count[:9]) <= MAX_EVENTS:
        raise InvalidInputError(f"--count takes a whole number from 1 to {MAX_EVENTS}")
    with desk(pool, None, redis_url, config, reads_only=True) as at:
        from allocator.protocol.wire import events_key

        store, stream = at.allocator.store, events_key(at.pool)
        batch = store.newest_events(stream, int(count))
        if not batch:
            at.allocator.run(check_pool(at.pool))
        last = batch[-1][0] if batch else "0-0"
        while True:
            for identifier, fields in batch:
                _write_event(identifier, fields, form)
            if not follow:
                return
            batch = []
            if store.wait_for_event(stream, last, 60.0):
                batch = store.read_events(stream, last, 1_000)
                last = batch[-1][0] if batch else last


def _write_event(identifier: str, fields: dict[str, str], form: ListFormat) -> None:
    moment = event_time(identifier)
    if form is ListFormat.JSON:
        from allocator.model.leases import written_time

        write_json({**fields, "id": identifier, "at": written_time(moment)})
        return
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    rest = {name: value for name, value in fields.items() if name not in {"type", "host", "port", "worker"}}
    tail = " ".join(f"{name}={value}" for name, value in rest.items())
    place = f"{fields.get('host')}:{fields.get('port')}"
    line = f"{clock}  {fields.get('type', '?').ljust(10)}  {place}  {fields.get('worker')}  {tail}"
    print(printable(line), flush=True)
