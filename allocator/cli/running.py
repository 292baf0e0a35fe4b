"""`run`: the supervisor of one worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.leases import (
    InstanceOption,
    LabelOption,
    OrgOption,
    Plugin,
    PortOption,
    PriorityOption,
    TtlOption,
    WaitOption,
    claim_arguments,
    seconds,
)
from allocator.cli.options import ConfigOption, HostOption, PoolOption, RedisOption, desk, talk

if TYPE_CHECKING:
    from allocator.model.leases import Lease


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(run)


def run(
    plugin: Plugin,
    command: Annotated[list[str], typer.Argument(help="The worker's command; {port} becomes its port.")],
    org: OrgOption,
    instance: InstanceOption = "0",
    port: PortOption = None,
    ttl: TtlOption = None,
    wait: WaitOption = None,
    priority: PriorityOption = "0",
    label: LabelOption = None,
    stop_timeout: Annotated[str, typer.Option("--stop-timeout", help="Time to end after SIGTERM.")] = "5s",
    pool: PoolOption = None,
    host: HostOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Run a worker on a leased port; give the port back when the worker has ended; exit as it did.

    Its environment has PORT, <PLUGIN>_PLUGIN_PORT, HAY_WORKER_PORT, ALLOCATOR_HOST and ALLOCATOR_FENCE.
    {port}, {host}, {org}, {plugin} and {instance} in its words are filled in; write a literal brace twice.

    Example: allocator run email --org org-123 -- node worker.js --port={port}
    """
    from allocator.supervisor.run import RunRequest, check_run, run_worker

    arguments = claim_arguments(plugin, org, instance, port, ttl, label, priority)
    wait_s = seconds(wait, "wait")
    stop_timeout_s = seconds(stop_timeout, "stop timeout") or 0.0
    check_run(command)
    with desk(pool, host, redis_url, config) as at:

        def claim() -> Lease:
            return at.allocator.claim(plugin, wait=wait_s, **arguments)

        request = RunRequest(
            command=command,
            stop_timeout_s=stop_timeout_s,
            explicit_port=arguments.get("port") is not None,
            environment=os.environ,
            talk=talk,
        )
        status = run_worker(at.allocator, claim, request)
    raise typer.Exit(status)
