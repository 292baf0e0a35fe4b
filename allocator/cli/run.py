"""The command line of `run`; what is done with it is in `supervision`, for which a child reads it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from allocator.cli import supervision
from allocator.cli.claim import (
    ContiguousOption,
    LabelOption,
    PortOption,
    PortsOption,
    PriorityOption,
    TtlOption,
    WaitOption,
    check_key,
)
from allocator.cli.options import ConfigOption, HostOption, PoolOption, RedisOption  # noqa: TC001  # typer reads them
from allocator.model.errors import InvalidInputError
from allocator.model.names import shown


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command(cls=RunCommand)(run)


class RunCommand(TyperCommand):
    """`run`, which refuses to guess whose an option is that stands after the worker's command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # typer's own copy of click, or click
        """Read the arguments.

        Raises:
            InvalidInputError: A command begins before `--`, and options or a `--` follow it.
        """
        if not ctx.resilient_parsing:
            own = args[: args.index("--")] if "--" in args else args
            command = self._from_first_name(ctx, self._from_first_name(ctx, own)[1:])
            option = next((argument for argument in command if argument.startswith("-") and argument != "-"), None)
            behind = option or ("--" if len(own) < len(args) else None)
            if command and behind:
                raise InvalidInputError(
                    f"{shown(behind)} after {shown(command[0])} may be of run or of the worker's command; put -- "
                    "before the command: allocator run PLUGIN --org ORG -- COMMAND"
                )
        return super().parse_args(ctx, args)

    def _from_first_name(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # as above
        """Return the arguments from the first on that is neither an option nor an option's value."""
        parser = type(self.make_parser(ctx))(ctx)  # without the arguments, which would take the rest
        for option in self.get_params(ctx):
            if option.param_type_name == "option":
                option.add_to_parser(parser, ctx)
        parser.allow_interspersed_args = False
        rest: list[str] = parser.parse_args(list(args))[1]
        return rest


def run(
    plugin: Annotated[str | None, typer.Argument(help="The worker's plugin, for example email.")] = None,
    command: Annotated[list[str] | None, typer.Argument(help="The worker's command; {port} becomes its port.")] = None,
    org: Annotated[
        str | None, typer.Option("--org", envvar="ALLOCATOR_ORG", metavar="ORG", help="The organisation's id.")
    ] = None,
    instance: Annotated[
        str,
        typer.Option(
            "--instance",
            metavar="NUMBER|auto",
            help="Number among the workers of the same plugin and organisation; auto: the same for a host and --key.",
        ),
    ] = "0",
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="NAME",
            help="Key for --instance auto; one for each worker of a host [default: the host's name]",
        ),
    ] = None,
    port: PortOption = None,
    ports: PortsOption = None,
    contiguous: ContiguousOption = False,
    ttl: TtlOption = None,
    wait: WaitOption = None,
    priority: PriorityOption = "0",
    label: LabelOption = None,
    health: Annotated[
        str | None, typer.Option(metavar="PATH", help="Path of the worker's health check. [default: only connect]")
    ] = None,
    health_interval: Annotated[
        str, typer.Option(metavar="DURATION", help="Time between checks of a ready worker.")
    ] = "5s",
    health_kill_after: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="Time without a good health check, after which the worker is restarted; 0s: never."
        ),
    ] = "60s",
    ready: Annotated[
        str,
        typer.Option(
            metavar="listens|started", help="When the worker is ready: it listens, or it has run for a second."
        ),
    ] = "listens",
    start_timeout: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="Time to begin listening, after which the worker is restarted; 0s: never."
        ),
    ] = "60s",
    restart: Annotated[
        str,
        typer.Option(
            metavar="never|on-failure|always", help="When to restart the worker: never, on-failure or always."
        ),
    ] = "on-failure",
    max_restarts: Annotated[
        str, typer.Option(metavar="COUNT", help="Number of restarts in a row; a healthy minute resets it.")
    ] = "10",
    max_declines: Annotated[
        str, typer.Option(metavar="COUNT", help="Number of ports in a row that may be in use.")
    ] = "5",
    drain_delay: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="Time between the state draining and the stop, for proxies to notice.",
        ),
    ] = "2s",
    stop_timeout: Annotated[str, typer.Option(metavar="DURATION", help="Time between SIGTERM and SIGKILL.")] = "5s",
    stop_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="POST to this path before SIGTERM, for example /disable.")
    ] = None,
    orphan: Annotated[
        str, typer.Option(metavar="kill|keep", help="What happens to the worker when the supervisor is killed.")
    ] = "kill",
    on_lost: Annotated[
        str | None,
        typer.Option(
            metavar="keep|stop",
            help="What happens to the worker while Redis does not answer. [default: by the pool's scope]",
        ),
    ] = None,
    env_file: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="File of NAME=value lines for the worker's environment; may be repeated."),
    ] = None,
    port_arg: Annotated[
        str | None,
        typer.Option(metavar="OPTION", help="Option of the command that gets the port: --port becomes --port=5556."),
    ] = None,
    pass_token: Annotated[
        bool, typer.Option("--pass-token", help="Pass the lease's token to the worker: ALLOCATOR_TOKEN.")
    ] = False,
    no_output_in_events: Annotated[
        bool,
        typer.Option(
            "--no-output-in-events", help="Leave the worker's last line of output out of the lease and events."
        ),
    ] = False,
    listen_fd: Annotated[
        bool, typer.Option("--listen-fd", help="Bind the port in the supervisor and pass the socket to the worker.")
    ] = False,
    replicas: Annotated[
        str, typer.Option(metavar="COUNT", help="Number of workers, with consecutive instances.")
    ] = "1",
    metrics_listen: Annotated[
        str | None,
        typer.Option("--metrics-listen", metavar="HOST:PORT", help="Address to serve the metrics of these leases at."),
    ] = None,
    workers_file: Annotated[
        str | None, typer.Option("--workers", metavar="FILE", help="TOML file with the workers to run.")
    ] = None,
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Run a worker on a leased port, renew the lease, release the port at the end; exit as the worker did.

    The worker's environment has PORT, <PLUGIN>_PLUGIN_PORT, HAY_WORKER_PORT, ALLOCATOR_HOST and ALLOCATOR_FENCE.
    {port}, {host}, {org}, {plugin} and {instance} in its arguments are replaced; write a literal brace twice.
    With --ports http,debug it has PORT_HTTP and PORT_DEBUG too, and {port.http} and {port.debug}.

    Example: allocator run email --org org-123 --health /health -- node worker.js --port={port}
    """
    check_key(key, instance)
    status = supervision.hand_over(
        {
            "plugin": plugin,
            "command": command,
            "port": port,
            "instance": instance,
            "key": key,
            "replicas": replicas,
            "workers_file": workers_file,
            "orphan": orphan,
            "on_lost": on_lost,
            "metrics_listen": metrics_listen,
            "settings": [pool, host, redis_url, config],
            "fields": {
                "org": org,
                "ttl": ttl,
                "wait": wait,
                "priority": priority,
                "labels": label,
                "health": health,
                "health_interval": health_interval,
                "health_kill_after": health_kill_after,
                "ready": ready,
                "start_timeout": start_timeout,
                "restart": restart,
                "max_restarts": max_restarts,
                "max_declines": max_declines,
                "drain_delay": drain_delay,
                "stop_timeout": stop_timeout,
                "stop_path": stop_path,
                "env_file": env_file or None,
                "port_arg": port_arg,
                "pass_token": pass_token or None,
                "no_output_in_events": no_output_in_events or None,
                "listen_fd": listen_fd or None,
                "ports": ports,
                "contiguous": contiguous or None,
            },
        }
    )
    raise typer.Exit(status)
