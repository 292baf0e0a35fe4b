"""`export`: the ready workers as the file of a proxy, a monitor or a script."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from allocator.cli.app import interrupts_raised
from allocator.cli.context import cli_context, report
from allocator.cli.options import ConfigOption, PoolOption, RedisOption  # noqa: TC001  # typer reads them
from allocator.model.durations import parse_duration_ms
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId, check_name, check_plugin
from allocator.operations.context import check_pool


class ExportFormat(StrEnum):
    """What can be exported; `allocator.discovery.formats` has the same names."""

    NGINX = "nginx"
    HAPROXY = "haproxy"
    TRAEFIK = "traefik"
    ENVOY = "envoy"
    PROMETHEUS = "prometheus"
    ENV = "env"
    JSON = "json"
    HOSTS = "hosts"


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(export)


def export(
    form: Annotated[ExportFormat, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(ExportFormat)}.")],
    org: Annotated[str | None, typer.Option("--org", metavar="ORG", help="Workers of this organisation only.")] = None,
    plugin: Annotated[
        str | None, typer.Option("--plugin", metavar="PLUGIN", help="Workers of this plugin only.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="File to write. [default: standard output]")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep the file current.")] = False,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec", metavar="COMMAND", help="Command to run when the file has changed; repeated until it succeeds."
        ),
    ] = None,
    command_time: Annotated[
        str, typer.Option("--exec-timeout", metavar="DURATION", help="Time after which a running command is ended.")
    ] = "60s",
    always: Annotated[
        list[str] | None,
        typer.Option("--always", metavar="ORG/PLUGIN", help="Service to write to the file even without a worker."),
    ] = None,
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Write the addresses of all ready workers in the format of a proxy, a monitor or a script.

    The file is replaced in one step, only when it changed, at most once a second; it stays as it is while Redis does
    not answer. A service whose workers have ended stays in it, without addresses. --always, or --org with --plugin,
    adds a service that never had a worker.

    Example: allocator export nginx --watch --out /etc/nginx/workers.conf --exec "nginx -s reload"
    """
    from allocator.cli.logs import start_logging
    from allocator.discovery.directory import Directory
    from allocator.discovery.exports import Exporter
    from allocator.discovery.formats import FORMATS

    if org is not None:
        check_name("organisation", org)
    if plugin is not None:
        check_plugin(plugin)
    if out is None and (watch or command):
        raise InvalidInputError("--watch and --exec go with a file; add --out FILE")
    timeout_s = parse_duration_ms(command_time, what="exec-timeout") / 1_000
    if timeout_s <= 0:
        raise InvalidInputError("a command needs time; give --exec-timeout for example 60s")
    services = [(worker.plugin, worker.org) for worker in map(WorkerId.parse, always or [])]
    if plugin is not None and org is not None:
        services.append((plugin, org))

    def render(directory: Directory) -> str:
        return FORMATS[form](directory.services())

    with cli_context(pool, None, redis_url, config, reads_only=True) as context:
        context.allocator.run(check_pool(context.pool))
        wanted = Directory(
            context.allocator,
            whole_pool=True,
            wanted=lambda its_plugin, its_org: plugin in {None, its_plugin} and org in {None, its_org},
            always=services,
        )
        with wanted as directory:
            if out is None:
                directory.start()
                print(render(directory), end="")
                return
            exporter = Exporter(directory, render, Path(out), command=command, timeout_s=timeout_s, report=report)
            with interrupts_raised():  # a command that runs is ended too
                if watch:
                    start_logging()
                    signal.signal(signal.SIGTERM, lambda *_: exporter.stop())
                    exporter.run()
                else:
                    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
                    directory.start()
                    exporter.export()
