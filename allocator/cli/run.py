"""`run`: the supervisor of one worker or of many."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from allocator.cli.claim import (
    ContiguousOption,
    LabelOption,
    PortOption,
    PortsOption,
    PriorityOption,
    TtlOption,
    WaitOption,
    check_key,
    instance_of,
)
from allocator.cli.options import ConfigOption, HostOption, PoolOption, RedisOption, cli_context, report
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId, shown
from allocator.model.values import replace

if TYPE_CHECKING:
    from allocator.cli.options import CliContext
    from allocator.supervisor.spec import WorkerSpec


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
    from allocator.cli.logs import start_logging
    from allocator.client.counts import HolderMetrics, serve_registry
    from allocator.supervisor.run import Supervision, run_workers

    given = {
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
    }
    check_key(key, instance)
    by_key = instance == "auto"
    if by_key and (replicas != "1" or workers_file):
        raise InvalidInputError("--instance auto is of one worker; leave --replicas and --workers out")
    own = {"plugin": plugin, "command": command, "port": port}
    orphans_end = _choice(orphan, "--orphan", ("kill", "keep")) == "kill"
    policy = _choice(on_lost, "--on-lost", ("keep", "stop")) if on_lost is not None else None
    specs = _specs(given, own, "0" if by_key else instance, replicas, workers_file, orphans_end=orphans_end)
    start_logging()
    with cli_context(pool, host, redis_url, config) as context:
        context.allocator.session.on_lost = _policy(context, policy)
        if by_key:
            (only,) = specs
            worker = instance_of(context, WorkerId(only.claim["org"], only.plugin), key or context.host)
            specs = [replace(only, claim={**only.claim, "instance": worker.instance})]
        supervision = Supervision(together=len(specs) > 1, orphans_end=orphans_end, report=report, files=context.files)
        with contextlib.ExitStack() as stack:
            if metrics_listen is not None:
                stack.enter_context(serve_registry(metrics_listen)).register(HolderMetrics(context.allocator))
            status = run_workers(context.allocator, specs, supervision)
    raise typer.Exit(status)


def _specs(
    given: dict[str, Any],
    own: dict[str, Any],
    instance: str,
    replicas: str,
    workers_file: str | None,
    *,
    orphans_end: bool,
) -> list[WorkerSpec]:
    """Return what to run, whole and checked: nothing is claimed before."""
    from allocator.supervisor.fields import convert, spec_of
    from allocator.supervisor.replicas import replicated, with_named_output
    from allocator.supervisor.spec import check_spec

    values = {field: convert(field, value) for field, value in given.items() if value is not None}
    count = convert("replicas", replicas)
    if workers_file is not None:
        if any(own.values()) or count > 1:
            raise InvalidInputError("--workers has what to run; omit the plugin, its command, --port and --replicas")
        from allocator.supervisor.workers_file import read_workers_file

        return with_named_output(read_workers_file(Path(workers_file), values, os.environ), orphans_end=orphans_end)
    if not own["plugin"]:
        raise InvalidInputError("there is no plugin; name one, or --workers FILE")
    if "org" not in values:
        raise InvalidInputError("there is no organisation; give its id: allocator run PLUGIN --org ORG -- COMMAND")
    if not own["command"]:
        raise InvalidInputError("there is no command to run; give one after --")
    values |= {field: convert(field, value) for field, value in own.items() if value is not None}
    spec = spec_of(values | {"instance": convert("instance", instance)}, os.environ)
    check_spec(spec)
    return with_named_output(replicated(spec, count), orphans_end=orphans_end)


def _choice(value: str, option: str, choices: tuple[str, str]) -> str:
    if value in choices:
        return value
    raise InvalidInputError(f"{shown(value)} is not a value of {option}; choose {choices[0]} or {choices[1]}")


def _policy(context: CliContext, given: str | None) -> Literal["keep", "stop"]:
    """Return what to do about a doubtful lease: a port that is unique over the fleet has no kernel to arbitrate."""
    if given == "stop":
        return "stop"
    if context.allocator.pool().scope == "host":
        return "keep"
    if given == "keep":
        raise InvalidInputError(
            f"--on-lost keep is not for pool {context.pool}: its ports are unique over all hosts, and no one "
            "kernel knows "
            "who has which; leave it out"
        )
    return "stop"
