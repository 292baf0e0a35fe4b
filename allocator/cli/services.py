"""`resolve`: where the workers of a service are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.claim import OrgOption  # noqa: TC001  # Typer reads the annotations
from allocator.cli.context import cli_context, seconds
from allocator.cli.options import ConfigOption, HostOption, ListFormat, PoolOption, RedisOption, RowsFormat
from allocator.cli.output import write_json
from allocator.model.errors import InvalidInputError
from allocator.model.names import check_name, check_plugin
from allocator.operations.context import check_pool

if TYPE_CHECKING:
    from allocator.cli.context import CliContext
    from allocator.model.endpoints import Endpoint


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(resolve)


def resolve(
    plugin: Annotated[str, typer.Argument(help="The service's plugin, for example email.")],
    org: OrgOption,
    every_one: Annotated[bool, typer.Option("--all", help="Print all ready workers, one a line.")] = False,
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait",
            metavar="DURATION",
            help="Time to wait for a ready worker, for example 10s. [default: do not wait]",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print a line for each worker that comes up or goes down.")
    ] = False,
    prefer_local: Annotated[bool, typer.Option("--prefer-local", help="Prefer workers of this host.")] = False,
    form: RowsFormat = ListFormat.TEXT,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Print the address of a ready worker of a service; successive calls go through all of them in turn.

    Exit 75 when none is ready, with the reason.

    Example: curl "http://$(allocator resolve email --org org-123)/health"
    """
    check_plugin(plugin)
    check_name("organisation", org)
    wait_s = seconds(wait, "wait")
    if watch and (every_one or wait is not None or prefer_local):
        raise InvalidInputError("--watch shows all workers as they come and go; leave the other choices out")
    if every_one and prefer_local:
        raise InvalidInputError("--all and --prefer-local contradict each other; choose one")
    with cli_context(pool, host, redis_url, config, reads_only=True) as context:
        context.allocator.run(check_pool(context.pool))
        if watch:
            _watch(context, plugin, org, form)
            return
        if not every_one:
            _write(context.allocator.resolve(plugin, org=org, wait=wait_s, prefer_local=prefer_local), form)
            return
        found = context.allocator.endpoints(plugin, org=org)
        if not found:
            context.allocator.resolve(plugin, org=org, wait=wait_s)
            found = context.allocator.endpoints(plugin, org=org)
        if form is ListFormat.JSON:
            write_json([one.as_json() for one in found])
        else:
            for one in found:
                print(one)


def _write(endpoint: Endpoint, form: ListFormat) -> None:
    if form is ListFormat.JSON:
        write_json(endpoint.as_json())
    else:
        print(endpoint)


def _watch(context: CliContext, plugin: str, org: str, form: ListFormat) -> None:
    from allocator.discovery.directory import Directory
    from allocator.discovery.service import Service

    with Directory(context.allocator) as directory:
        for change, endpoint in Service(plugin, org=org, directory=directory).changes():
            if form is ListFormat.JSON:
                write_json({"change": change, **endpoint.as_json()})
            else:
                print(f"{change.ljust(4)}  {endpoint}  {endpoint.worker}", flush=True)
