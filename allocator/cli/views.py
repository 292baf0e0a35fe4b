"""`show` and `who`: one port or one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli import completion
from allocator.cli.context import CliContext, cli_context
from allocator.cli.options import ConfigOption, HostOption, ListFormat, PoolOption, RedisOption, RowsFormat
from allocator.cli.output import write_json
from allocator.cli.targets import parse_target
from allocator.model.errors import LeaseLostError, printable
from allocator.model.names import check_port

if TYPE_CHECKING:
    from allocator.operations.listing import PortView

MAX_EVENTS = 10_000


def register(application: typer.Typer) -> None:
    """Add the commands."""
    application.command()(show)
    application.command()(who)


def show(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PORT|ORG/PLUGIN[#INSTANCE]",
            help="A port of this host, or a worker.",
            autocompletion=completion.targets,
        ),
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
    with cli_context(pool, host, redis_url, config, reads_only=True) as context:
        named = parse_target(target)
        if not isinstance(named, int):
            lease = next((one for one in context.allocator.leases() if one.worker == named), None)
            if lease is None:
                raise LeaseLostError(f"{named} has no live lease in pool {context.pool}; see 'allocator ls'")
            facts: dict[str, object] = dict(lease.as_json())
        else:
            view = _view(context, named)
            if view.why == "free":
                context.allocator.pool().check_port(named)
            facts = {"pool": context.pool, "host": context.host, "port": view.port, "status": view.why}
            if view.lease:
                facts |= view.lease.as_json()
            elif view.claimable_in_ms > 0:
                facts["claimable_in_s"] = round(view.claimable_in_ms / 1_000, 3)
        _write_facts(facts, form)


def _view(context: CliContext, port: int) -> PortView:
    from allocator.operations.listing import port_view

    rules = context.allocator.pool()
    return context.allocator.run(
        port_view(context.pool, rules.namespace_of(context.allocator.session.context.host), port)
    )


def _write_facts(facts: dict[str, object], form: ListFormat) -> None:
    if form is ListFormat.JSON:
        write_json(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(printable(f"{name.ljust(width)}  {_fact(value)}"))


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in value.items()) or "-"
    return "-" if value is None else str(value)


def who(
    port: Annotated[
        str,
        typer.Argument(
            metavar="PORT", help="A port of this host, of the pool or not.", autocompletion=completion.ports
        ),
    ],
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Show who has a port: its lease, and the process that listens on it.

    Example: allocator who 5556
    """
    number = check_port(port)
    with cli_context(pool, host, redis_url, config, reads_only=True) as context:
        from allocator.agent.family import is_stranger
        from allocator.kernel.sockets import listeners

        view = _view(context, number)
        listening = listeners(number, number)
        lease = view.lease
        rules = context.allocator.pool()
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
